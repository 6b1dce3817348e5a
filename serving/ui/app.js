// The page's beginning: every section is started once, then the endpoint is asked what it serves.

import { startDrift, watch } from "./drift.js";
import { look } from "./endpoint.js";
import { startKey } from "./key.js";
import { startModels } from "./models.js";
import { startPairs } from "./pairs.js";
import { startTabs } from "./tabs.js";
import { startZeroShot } from "./zero_shot.js";

let shown = "";

function show(section) {
  shown = section;
  watch(section === "drift");
}

async function refresh() {
  await look(false);
  watch(shown === "drift");
}

startPairs();
startZeroShot();
startModels();
startDrift();
startKey(refresh);
startTabs(show);
window.addEventListener("online", () => look(true));
look(false);
