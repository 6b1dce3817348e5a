// What tests/test_ui.py measures in the page. One expression, an object of functions.
({
  // [what, contrast, least contrast] of every text and field that is seen
  contrast: () => {
    const parse = (color) => {
      const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number);
      return [r, g, b, a];
    };
    const light = ([r, g, b]) => {
      const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const color = parse(getComputedStyle(at).backgroundColor);
        if (color[3] === 1) return color;
        if (color[3] !== 0) throw new Error("half transparent: " + at.outerHTML.slice(0, 80));
      }
      return parse(getComputedStyle(document.documentElement).backgroundColor);
    };
    const ratio = (one, other) => {
      const [high, low] = [light(one), light(other)].sort((x, y) => y - x);
      return (high + 0.05) / (low + 0.05);
    };
    const rows = [];
    for (const element of document.querySelectorAll("body *")) {
      if (!element.checkVisibility() || element.closest(".unseen, .skip, noscript")) continue;
      const style = getComputedStyle(element);
      const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      const field = element.matches("input:not([type=checkbox]), textarea, select");
      const name = element.outerHTML.slice(0, 90);
      if (own || field) {
        const pixels = parseFloat(style.fontSize);
        const large = pixels >= 24 || (pixels >= 18.66 && Number(style.fontWeight) >= 700);
        rows.push([name, ratio(parse(style.color), behind(element)), large ? 3 : 4.5]);
      }
      if (field) {
        rows.push([name + " border", ratio(parse(style.borderTopColor), behind(element.parentElement)), 3]);
        const hint = parse(getComputedStyle(element, "::placeholder").color);
        if (element.placeholder) rows.push([name + " placeholder", ratio(hint, behind(element)), 4.5]);
      }
    }
    return rows;
  },

  // what someone who hears the page, or points with a thumb, would stumble over
  access: () => {
    const wrong = [];
    const say = (element, what) => wrong.push(what + ": " + element.outerHTML.slice(0, 120));
    const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
    for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) wrong.push("id twice: " + id);
    for (const name of ["for", "aria-labelledby", "aria-describedby", "aria-controls"])
      for (const element of document.querySelectorAll(`[${name}]`))
        for (const id of element.getAttribute(name).split(" "))
          if (!document.getElementById(id)) say(element, `${name} leads nowhere`);
    for (const field of document.querySelectorAll("input, textarea, select"))
      if (![...field.labels].some((label) => label.textContent.trim())) say(field, "no label");
    for (const button of document.querySelectorAll("button"))
      if (!(button.getAttribute("aria-label") ?? button.textContent).trim()) say(button, "no name");
    for (const image of document.querySelectorAll("img")) if (!image.hasAttribute("alt")) say(image, "no alt");
    for (const group of document.querySelectorAll("fieldset"))
      if (!group.querySelector("legend").textContent) say(group, "no legend");
    for (const table of document.querySelectorAll("table")) {
      if (!table.caption) say(table, "no caption");
      for (const head of table.querySelectorAll("th")) if (!head.scope) say(head, "no scope");
    }
    for (const meter of document.querySelectorAll("[role=meter]"))
      if (!meter.hasAttribute("aria-valuetext") || !(Number(meter.getAttribute("aria-valuenow")) <= 1)) say(meter, "no value");
    for (const hidden of document.querySelectorAll("[aria-hidden=true]"))
      if (hidden.querySelector("a, button, input, select, textarea, summary, [tabindex]"))
        say(hidden, "hidden, but can be reached");
    for (const element of document.querySelectorAll("[tabindex]")) if (element.tabIndex > 0) say(element, "order by number");
    let level = 0;
    for (const heading of document.querySelectorAll("h1, h2, h3, h4")) {
      if (!heading.checkVisibility()) continue;
      const next = Number(heading.tagName[1]);
      if (next > level + 1) say(heading, "a level is left out");
      level = next;
    }
    for (const element of document.querySelectorAll("button, select, textarea, input, summary")) {
      const box = element.getBoundingClientRect();
      if (element.checkVisibility() && (box.height < 24 || box.width < 24) && !element.matches("[type=checkbox]"))
        say(element, "small");
    }
    if (!document.documentElement.lang || document.querySelectorAll("main").length !== 1) wrong.push("language or main");
    return wrong;
  },

  // what sticks out of the screen
  beyond: () =>
    [...document.querySelectorAll("body *")]
      .filter((element) => element.checkVisibility() && !element.closest(".unseen, .skip"))
      .filter((element) => {
        const { left, right } = element.getBoundingClientRect();
        return left < -0.5 || right > document.documentElement.clientWidth + 0.5;
      })
      .map((element) => element.outerHTML.slice(0, 120)),

  // how many elements the Tab key must come to; the skip link waits out of sight
  reachable: () =>
    [...document.querySelectorAll("a, button, input, select, textarea, summary")].filter(
      (element) => element.tabIndex >= 0 && element.checkVisibility(),
    ).length,

  focused: () => {
    const element = document.activeElement;
    const style = getComputedStyle(element);
    return [
      element.tagName,
      style.outlineStyle === "solid" ? parseFloat(style.outlineWidth) : 0,
      element.outerHTML.slice(0, 120),
    ];
  },
});
