// What our figures of circuitsvis's words and tables share.
MechVLM.widget = (() => {
  // circuitsvis sets a token as HTML in one place and as text in another. A word joiner,
  // which has no width, after each "<" and "&" makes both read the same: by HTML's rules
  // neither starts a tag or an entity then.
  const harmless = (token) => token.replace(/[<&]/g, "$&\u2060");

  // A widget in a home of its own, looked after by `tend` whenever its elements change:
  // circuitsvis draws when it likes, and draws again on hover.
  function place(stage, kind, props, tend) {
    const home = MechVLM.el("div");
    home.id = "mv-circuits-" + (MechVLM.circuits = (MechVLM.circuits || 0) + 1);
    stage.replaceChildren(home);
    new MutationObserver(() => tend(home)).observe(home, { childList: true, subtree: true });
    CircuitsVis.render(home.id, CircuitsVis[kind], props);
    return home;
  }

  // Whether dark words read better than light ones on a ground; luminance as in WCAG 2.
  function bright([r, g, b]) {
    const linear = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.19;
  }

  // A cell in its colour, its words in the ink that reads better on it.
  function paint(cell, [r, g, b]) {
    cell.classList.add("mv-painted");
    cell.style.setProperty("--mv-cell", `rgb(${r},${g},${b})`);
    cell.style.setProperty("--mv-word", bright([r, g, b]) === MechVLM.dark ? "var(--paper)" : "var(--ink)");
  }

  function chooser(labels, first, changed) {
    const { el } = MechVLM, bar = el("label", "mv-choose"), select = el("select");
    labels.forEach((label, i) => {
      const option = el("option", "", label);
      option.value = i;
      select.append(option);
    });
    select.value = first;
    select.addEventListener("change", () => changed(Number(select.value)));
    bar.append(el("span", "", "show"), select);
    return bar;
  }

  return { harmless, place, paint, bright, chooser };
})();
