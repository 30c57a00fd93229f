// Ways that rise: one shape of curve, and what a width says, for graphs of all kinds.
MechVLM.arcs = (() => {
  const { el, svg, number } = MechVLM;

  // A curve through points (x, y, x, y, ...), which leaves and arrives vertically.
  function rising(at) {
    let way = "M" + at[0] + " " + at[1];
    for (let i = 2; i < at.length; i += 2) {
      const middle = (at[i - 1] + at[i + 1]) / 2;
      way += at[i] === at[i - 2] ? "L" + at[i] + " " + at[i + 1]
        : "C" + at[i - 2] + " " + middle + " " + at[i] + " " + middle + " " + at[i] + " " + at[i + 1];
    }
    return way;
  }

  // The value whose colour an effect takes: weak ones too stand out from the paper.
  const shade = (effect, full) => (effect < 0 ? -1 : 1) * (0.4 * full + 0.6 * Math.abs(effect));

  const css = (rgb) => "rgb(" + rgb.join(",") + ")";

  // Lines as thick as round sizes, each with its size beside it, then what they are sizes of.
  function legend(sizes, words) {
    const box = el("div", "mv-sizes"), rows = [];
    for (const { width, value, colour } of sizes) {
      const line = svg("line", { x1: 0, x2: 26, y1: 8, y2: 8, "stroke-width": width });
      const sample = svg("svg", { width: 26, height: 16, "aria-hidden": "true" });
      const entry = el("span");
      sample.append(line);
      entry.append(sample, value);
      box.append(entry);
      rows.push(() => line.setAttribute("stroke", colour()));
    }
    box.append(el("span", "", words));
    MechVLM.themed(() => rows.forEach((paint) => paint()));
    return box;
  }

  // Shorten words that stand in a drawing until they fit into so many pixels.
  function fit(text, room) {
    const letters = Array.from(text.textContent);
    for (let n = letters.length - 1; n > 0 && text.getComputedTextLength() > room; n--)
      text.textContent = letters.slice(0, n).join("") + "…";
  }

  // What is pointed at is chosen; what is clicked, or walked to by `walk(key)`, stays until
  // Escape or a click beside it.
  function choosing(plot, under, choose, walk) {
    let pinned = false;
    const hover = (event, what) => {
      if (!pinned && event.pointerType !== "touch") choose(what);
    };
    plot.addEventListener("pointermove", (event) => hover(event, under(event)));
    plot.addEventListener("pointerleave", (event) => hover(event, null));
    plot.addEventListener("click", (event) => {
      const found = under(event);
      pinned = Boolean(found);
      choose(found);
    });
    plot.addEventListener("keydown", (event) => {
      const next = event.key === "Escape" ? null : walk(event.key);
      if (next === undefined) return;
      event.preventDefault();
      pinned = Boolean(next);
      choose(next);
    });
  }

  return { rising, shade, css, legend, fit, choosing };
})();
