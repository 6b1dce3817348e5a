// Tabs by the ARIA practices: arrows, Home and End move, the selected one alone takes part in Tab, the address keeps it.

const tabs = [...document.querySelectorAll('[role="tab"]')];
const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));

/** Start the tabs; `shown(id)` is called with the panel's id whenever one is shown. */
export function startTabs(shown) {
  const select = (tab) => {
    for (const other of tabs) {
      const selected = other === tab;
      other.setAttribute("aria-selected", selected);
      other.tabIndex = selected ? 0 : -1;
      panelOf(other).hidden = !selected;
    }
    shown(panelOf(tab).id);
  };
  const open = (tab) => {
    history.replaceState(null, "", `#${panelOf(tab).id}`);
    select(tab);
  };
  for (const [place, tab] of tabs.entries()) {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const goal = {
        ArrowRight: (place + 1) % tabs.length,
        ArrowLeft: (place + tabs.length - 1) % tabs.length,
        Home: 0,
        End: tabs.length - 1,
      }[event.key];
      if (goal === undefined) return;
      event.preventDefault();
      tabs[goal].focus();
      open(tabs[goal]);
    });
  }
  const addressed = () => tabs.find((tab) => `#${panelOf(tab).id}` === location.hash);
  window.addEventListener("hashchange", () => {
    const tab = addressed();
    if (tab) select(tab);
  });
  select(addressed() ?? tabs[0]);
}
