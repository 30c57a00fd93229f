// Two results on one scale, and the first less the second; what one shows, all show.
MechVLM.kinds.compare = (plot, spec, output, figure) => {
  const { el, number, say } = MechVLM;
  const [first, second] = spec.names, less = first + " − " + second, maps = spec.kind === "map";
  const titles = maps ? [first, second, less] : [first + " and " + second, less];
  const stage = el("div", "mv-compare");
  let linking = false, chosen = -1;

  const panels = spec.panels.map((each, i) => {
    const box = el("section", "mv-compare-panel"), heading = el("figcaption", "", ""), inner = el("div", "mv-plot");
    heading.append(el("strong", "", titles[i]));
    Object.assign(inner, { tabIndex: 0 });
    inner.setAttribute("role", "application");
    inner.setAttribute("aria-label", titles[i] + "; arrow keys walk it");
    box.append(heading, inner);
    stage.append(box);
    const redraw = MechVLM.kinds[spec.kind](inner, each, el("output"), box);
    const bar = box.querySelector(".mv-bar");
    if (bar && i < 2) bar.remove();
    if (bar && i === 0) figure.querySelector("figcaption").after(bar);
    inner.addEventListener("mv-chosen", (event) => follow(i, event.detail));
    return { box, inner, redraw, values: MechVLM.decode(each.values) };
  });

  function follow(from, at) {
    if (linking) return;
    linking = true;
    panels.forEach(({ inner }, i) => {
      if (i !== from) inner.dispatchEvent(new CustomEvent("mv-choose", { detail: at }));
    });
    linking = false;
    read((chosen = at));
  }

  function most() {
    const apart = panels[2].values;
    let best = 0;
    apart.forEach((v, i) => {
      if (Number.isFinite(v) && !(Math.abs(v) <= Math.abs(apart[best]))) best = i;
    });
    return best;
  }

  function readCell(at) {
    const { rows, cols, quiet } = spec.panels[0], i = at < 0 ? most() : at;
    const r = Math.floor(i / cols.labels.length), c = i % cols.labels.length;
    const values = panels.map((panel) => number(panel.values[i]));
    const parts = [{ value: first + " " + values[0] }, { value: second + " " + values[1] },
      { value: "difference " + values[2] }, rows.name + " " + rows.labels[r].replaceAll("->", "→"),
      cols.name + " " + cols.labels[c]];
    if (cols.tokens.length && !quiet[c]) parts.push({ token: cols.tokens[c] });
    parts.push(MechVLM.groupAt(cols, c));
    say(output, at < 0 ? ["largest difference", ...parts] : parts);
  }

  function readLines(at) {
    const { cols } = spec.panels[0], n = cols.labels.length, names = spec.panels[1].lines.labels;
    if (at < 0) return say(output, ["point at a " + cols.name + " to read both and their difference"]);
    const parts = [cols.name + " " + cols.labels[at]];
    names.forEach((name, line) => {
      const value = (panel, row) => number(panels[panel].values[row * n + at]);
      const lead = names.length > 1 ? name + ": " : "";
      parts.push(lead + first + " " + value(0, 2 * line), second + " " + value(0, 2 * line + 1), { value: "difference " + value(1, line) });
    });
    say(output, parts);
  }

  const read = maps ? readCell : readLines;
  plot.setAttribute("role", "group");
  plot.removeAttribute("tabindex");
  plot.append(stage);
  return (width) => {
    const beside = maps && spec.narrow && width >= 640;
    stage.classList.toggle("mv-beside", beside);
    linking = true; // a panel that is not drawn yet cannot follow
    for (const { inner, redraw } of panels) redraw(beside ? inner.clientWidth : width);
    linking = false;
    read(chosen);
  };
};
