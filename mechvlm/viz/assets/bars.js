// Lying bars by condition, coloured by series, with whiskers where there are intervals.
MechVLM.kinds.bars = (plot, spec, output) => {
  const { svg, number, say } = MechVLM;
  const values = MechVLM.decode(spec.values), ends = spec.bands.map((end) => MechVLM.decode(end));
  const n = spec.rows.labels.length, names = spec.series;
  const finite = [values, ...ends].flatMap((each) => Array.from(each)).filter(Number.isFinite);
  const low = Math.min(0, ...finite), high = Math.max(0, ...finite);
  const BAR = 13, STEP = BAR * names.length + 16, TOP = 6;
  const colour = MechVLM.series;
  let chosen = -1, shade = null, layer = null;

  function redraw(width) {
    plot.replaceChildren();
    const legend = MechVLM.legend(spec.key, names, 10);
    if (names.length > 1) plot.append(legend);
    const tall = TOP + n * STEP + 44;
    layer = svg("svg", { class: "mv-text", width, height: tall, "aria-hidden": "true" });
    plot.append(layer);
    plot.style.height = tall + (names.length > 1 ? legend.offsetHeight + 8 : 0) + "px";
    shade = svg("rect", { x: 0, width, height: STEP, class: "mv-shade", visibility: "hidden" });
    layer.append(shade);
    const most = width < 560 ? 20 : 44;
    const labels = spec.rows.labels.map((label) => svg("text", {}, MechVLM.shortened(label, most)));
    layer.append(...labels);
    const left = Math.max(...labels.map((label) => label.getComputedTextLength())) + 12;
    const wide = Math.max(60, width - left - 24);
    const x = (v) => left + ((v - low) / (high - low || 1)) * wide;
    const top = (k) => TOP + k * STEP;
    for (const mark of MechVLM.ticks(low, high, wide < 260 ? 3 : 6)) {
      layer.append(svg("line", { x1: x(mark), x2: x(mark), y1: TOP, y2: top(n), class: mark === 0 ? "mv-zero" : "mv-grid" }));
      layer.append(svg("text", { x: x(mark), y: top(n) + 16, "text-anchor": "middle", class: "mv-faint" }, number(mark)));
    }
    layer.append(svg("text", { x: left + wide / 2, y: top(n) + 36, "text-anchor": "middle", class: "mv-faint" }, spec.units));
    labels.forEach((label, k) => { label.setAttribute("y", top(k) + STEP / 2 + 4); });
    layer.append(svg("text", { x: 0, y: top(n) + 16, class: "mv-faint" }, spec.rows.name));
    names.forEach((_, i) => {
      for (let k = 0; k < n; k++) {
        const at = i * n + k, y = top(k) + 8 + i * BAR;
        if (!Number.isFinite(values[at])) continue;
        const from = Math.min(x(0), x(values[at]));
        layer.append(svg("rect", { x: from, y, width: Math.max(1, Math.abs(x(values[at]) - x(0))), height: BAR - 2, fill: colour(i), class: "mv-bars" }));
        if (ends.length && Number.isFinite(ends[0][at]))
          layer.append(svg("line", { x1: x(ends[0][at]), x2: x(ends[1][at]), y1: y + (BAR - 2) / 2, y2: y + (BAR - 2) / 2, class: "mv-whisker" }));
      }
    });
    choose(chosen);
  }

  function choose(k) {
    chosen = k;
    shade.setAttribute("visibility", k < 0 ? "hidden" : "visible");
    if (k < 0) return say(output, ["point at a " + spec.rows.name + " to read its values"]);
    shade.setAttribute("y", TOP + k * STEP);
    const within = (at) => (ends.length ? " (" + ends.map((end) => number(end[at])).join(" to ") + ")" : "");
    say(output, [{ value: spec.rows.labels[k] }, ...names.map((name, i) => (name ? name + " " : "") + number(values[i * n + k]) + within(i * n + k))]);
  }

  function at(event) {
    const k = Math.floor((event.clientY - layer.getBoundingClientRect().top - TOP) / STEP);
    return k < 0 || k >= n ? -1 : k;
  }

  plot.addEventListener("pointermove", (event) => choose(at(event)));
  plot.addEventListener("pointerdown", (event) => choose(at(event)));
  plot.addEventListener("pointerleave", () => choose(-1));
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    choose(Math.min(n - 1, Math.max(0, chosen + move)));
  });
  return redraw;
};
