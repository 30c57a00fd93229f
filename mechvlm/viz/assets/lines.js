// Lines over layers, each named at its right end, with bands where there are intervals.
MechVLM.kinds.lines = (plot, spec, output) => {
  const { svg, number, say } = MechVLM;
  const values = MechVLM.decode(spec.values);
  const n = spec.cols.labels.length, names = spec.lines.labels;
  const lines = names.map((_, i) => Array.from(values.slice(i * n, (i + 1) * n)));
  const pairs = spec.pairs ? 2 : 1; // two results of a pair share their colour, the second is dashed
  const colour = (i) => MechVLM.series(Math.floor(i / pairs));
  const dash = (i) => (i % pairs ? "7 3" : ["", "7 3", "2 3"][Math.floor(i / 6 / pairs) % 3]);
  const bands = spec.bands.map((band) => MechVLM.decode(band));
  const finite = [values, ...bands].flatMap((each) => Array.from(each)).filter(Number.isFinite);
  const low = Math.min(0, ...finite), high = Math.max(0, ...finite), pad = (high - low || 1) * 0.05;
  const marks = MechVLM.ticks(low, high, 7), HIGH = Math.max(300, 16 * names.length), TOP = 28;
  let left = 60, wide = 1, chosen = -1, guide = null;
  const named = names.some(Boolean);

  const x = (i) => left + (n > 1 ? (i / (n - 1)) * wide : wide / 2);
  const y = (v) => TOP + HIGH * (1 - (v - (low - pad)) / (high - low + 2 * pad || 1));

  // Labels 16 px apart, each block of touching ones at the mean of where they belong.
  function spread(ends) {
    const order = ends.map((_, i) => i).sort((a, b) => ends[a] - ends[b]);
    const mean = (block) => block.reduce((a, b) => a + b, 0) / block.length;
    const blocks = [], out = ends.slice();
    order.forEach((i, rank) => {
      let block = [ends[i] - 16 * rank];
      while (blocks.length && mean(blocks[blocks.length - 1]) > mean(block)) block = blocks.pop().concat(block);
      blocks.push(block);
    });
    const level = blocks.flatMap((block) => block.map(() => mean(block)));
    order.forEach((i, rank) => { out[i] = level[rank] + 16 * rank; });
    return out;
  }

  function path(line) {
    let pen = "M";
    return line.map((v, i) => {
      if (!Number.isFinite(v)) { pen = "M"; return ""; }
      const part = pen + x(i).toFixed(1) + " " + y(v).toFixed(1);
      pen = "L";
      return part;
    }).join("");
  }

  function band(i) {
    const [low, high] = bands.map((end) => Array.from(end.slice(i * n, (i + 1) * n)));
    const there = low.map((_, k) => k).filter((k) => Number.isFinite(low[k]) && Number.isFinite(high[k]));
    const point = (end) => (k) => x(k).toFixed(1) + " " + y(end[k]).toFixed(1);
    return "M" + there.map(point(low)).concat(there.reverse().map(point(high))).join("L") + "Z";
  }

  function redraw(width) {
    plot.replaceChildren();
    const layer = svg("svg", { class: "mv-text", width, height: TOP + HIGH + 48, "aria-hidden": "true" });
    const narrow = width < 560, legend = MechVLM.legend("", names, 2, dash, colour);
    if (narrow && named) plot.append(legend);
    plot.append(layer);
    plot.style.height = TOP + HIGH + 48 + (narrow && named ? legend.offsetHeight + 8 : 0) + "px";
    const labels = names.map((name, i) => svg("text", { style: "fill:" + colour(i), class: "mv-name" }, narrow ? "" : MechVLM.shortened(name, 34)));
    layer.append(...labels);
    const right = Math.max(...labels.map((l) => l.getComputedTextLength())) + (narrow ? 8 : 26);
    left = 52;
    wide = Math.max(60, Math.min(width - left - right, 100 * n));
    for (const mark of marks) {
      layer.prepend(svg("line", { x1: left, x2: left + wide, y1: y(mark), y2: y(mark), class: mark === 0 ? "mv-zero" : "mv-grid" }));
      layer.append(svg("text", { x: left - 10, y: y(mark) + 4, "text-anchor": "end", class: "mv-faint" }, number(mark)));
    }
    const step = Math.ceil(n / Math.max(2, Math.floor(wide / 34)));
    spec.cols.labels.forEach((label, i) => {
      if (i % step === 0) layer.append(svg("text", { x: x(i), y: TOP + HIGH + 20, "text-anchor": "middle", class: "mv-faint" }, label));
    });
    layer.append(svg("text", { x: left + wide / 2, y: TOP + HIGH + 42, "text-anchor": "middle", class: "mv-faint" }, spec.cols.name));
    layer.append(svg("text", { x: 0, y: 12, class: "mv-faint" }, spec.units));
    guide = svg("line", { y1: TOP, y2: TOP + HIGH, class: "mv-guide" });
    layer.append(guide);
    const ends = lines.map((line) => y(line.filter(Number.isFinite).pop() ?? 0));
    const places = spread(ends);
    if (bands.length) lines.forEach((_, i) => layer.append(svg("path", { d: band(i), fill: colour(i), class: "mv-band" })));
    lines.forEach((line, i) => {
      layer.append(svg("path", { d: path(line), stroke: colour(i), "stroke-dasharray": dash(i), class: "mv-line" }));
      line.forEach((v, k) => {
        const alone = !Number.isFinite(line[k - 1]) && !Number.isFinite(line[k + 1]); // no stroke shows it
        if (Number.isFinite(v) && (n <= 48 || alone)) layer.append(svg("circle", { cx: x(k), cy: y(v), r: 2.6, fill: colour(i) }));
      });
      if (!narrow) layer.append(svg("path", { d: `M${x(n - 1) + 5} ${ends[i]}L${x(n - 1) + 18} ${places[i]}`, stroke: colour(i), class: "mv-lead" }));
      labels[i].setAttribute("x", x(n - 1) + 22);
      labels[i].setAttribute("y", places[i] + 4);
    });
    choose(chosen);
  }

  function choose(i) {
    chosen = i;
    plot.dispatchEvent(new CustomEvent("mv-chosen", { detail: i })); // for views that are linked
    guide.setAttribute("visibility", i < 0 ? "hidden" : "visible");
    if (i < 0) return say(output, ["point at a " + spec.cols.name + " to read its values"]);
    guide.setAttribute("x1", x(i));
    guide.setAttribute("x2", x(i));
    const parts = [spec.cols.name + " " + spec.cols.labels[i]];
    const within = (k) => (bands.length ? " (" + bands.map((end) => number(end[k * n + i])).join(" to ") + ")" : "");
    lines.forEach((line, k) => parts.push((names[k] ? names[k] + " " : "") + number(line[i]) + within(k)));
    say(output, parts);
  }

  function at(event) {
    const inside = event.clientX - plot.getBoundingClientRect().left - left;
    const i = Math.round((inside / wide) * (n - 1));
    return inside < -20 || inside > wide + 20 ? -1 : Math.min(n - 1, Math.max(0, i));
  }

  plot.addEventListener("pointermove", (event) => choose(at(event)));
  plot.addEventListener("pointerdown", (event) => choose(at(event)));
  plot.addEventListener("pointerleave", () => choose(-1));
  plot.addEventListener("mv-choose", (event) => choose(event.detail));
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    choose(Math.min(n - 1, Math.max(0, chosen + move)));
  });
  return redraw;
};
