// A plane of cells: rows by columns, with token labels and bands of groups.
MechVLM.kinds.map = (plot, spec, output, figure) => {
  const { el, svg, number, say } = MechVLM;
  const values = MechVLM.decode(spec.values), colour = MechVLM.palette(spec.scale);
  const nRows = spec.rows.labels.length, nCols = spec.cols.labels.length;
  const written = spec.cols.tokens.length > 0, up = spec.rows.name === "layer";
  const words = (written ? spec.cols.tokens : spec.cols.labels).map((w, i) =>
    spec.quiet[i] ? "" : MechVLM.shortened(w, 22));
  figure.querySelector("figcaption").after(MechVLM.bar(spec.scale, spec.units));

  let edges = [], left = 0, top = 0, row = 1, sharp = 1, chosen = -1;
  const marker = el("div", "mv-cell"), raster = el("canvas");

  const stronger = (i, than) => Number.isFinite(values[i]) && !(Math.abs(values[i]) <= Math.abs(values[than]));
  const best = values.reduce((found, _, i) => (stronger(i, found) ? i : found), 0);

  function columnEdges(room) {
    const silent = spec.quiet.filter(Boolean).length, rest = nCols - silent;
    const most = written ? 30 : 46;
    const wide = rest ? Math.min(most, (room * (silent ? 0.66 : 1)) / rest) : 0;
    const thin = silent ? Math.min(most, (room - wide * rest) / silent) : 0;
    const out = [0];
    spec.quiet.forEach((q) => out.push(out[out.length - 1] + (q ? thin : wide)));
    return out;
  }

  function inGrid(position) {
    const inside = ([start, rows, cols]) => position >= start && position < start + rows * cols;
    const which = spec.grids.findIndex(inside);
    if (which < 0) return "";
    const [start, , cols] = spec.grids[which], k = position - start;
    return (spec.grids.length > 1 ? "grid " + which + ", " : "image ") + "row " + Math.floor(k / cols) + ", col " + (k % cols);
  }

  function read(i, lead) {
    const r = Math.floor(i / nCols), c = i % nCols, cols = spec.cols;
    const parts = [{ value: number(values[i]) }, spec.rows.name + " " + spec.rows.labels[r].replaceAll("->", "→"),
      cols.name + " " + cols.labels[c]];
    if (spec.rows.tokens.length) parts.splice(2, 0, { token: spec.rows.tokens[r] });
    if (written && !spec.quiet[c]) parts.push({ token: cols.tokens[c] });
    parts.push((cols.name === "position" && inGrid(Number(cols.labels[c]))) || MechVLM.groupAt(cols, c));
    say(output, lead ? [lead, ...parts] : parts);
  }

  function choose(i) {
    chosen = i;
    marker.hidden = i < 0;
    plot.dispatchEvent(new CustomEvent("mv-chosen", { detail: i })); // for views that are linked
    if (i < 0) return read(best, "strongest");
    const r = Math.floor(i / nCols), c = i % nCols;
    Object.assign(marker.style, {
      left: left + edges[c] + "px", width: Math.max(2, edges[c + 1] - edges[c]) + "px",
      top: top + (up ? nRows - 1 - r : r) * row + "px", height: row + "px",
    });
    read(i);
  }

  function at(event) {
    const box = plot.getBoundingClientRect();
    const x = event.clientX - box.left - left, y = event.clientY - box.top - top;
    if (x < 0 || y < 0 || x >= edges[nCols] || y >= row * nRows) return -1;
    const r = Math.floor(y / row), first = (up ? nRows - 1 - r : r) * nCols, under = column(x);
    if ((edges[under + 1] - edges[under]) * sharp >= 1) return first + under;
    const pixel = Math.floor(x * sharp);
    let found = -1; // of columns thinner than a pixel, the one that gave it its colour
    for (let c = column(pixel / sharp); c < nCols && edges[c] * sharp < pixel + 1; c++)
      if (Math.floor(edges[c] * sharp) === pixel && (found < 0 || stronger(first + c, found))) found = first + c;
    return found < 0 ? first + under : found;
  }

  function column(x) {
    let low = 0, high = nCols;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (edges[middle] <= x) low = middle; else high = middle;
    }
    return low;
  }

  function widest(layer, texts, size) {
    const probe = svg("text", { "font-size": size });
    layer.append(probe);
    let most = 0;
    const longest = [...new Set(texts)].sort((a, b) => b.length - a.length).slice(0, 24);
    for (const text of longest) {
      probe.textContent = text;
      most = Math.max(most, probe.getComputedTextLength());
    }
    probe.remove();
    return most;
  }

  function redraw(width) {
    plot.replaceChildren();
    const layer = svg("svg", { class: "mv-text", width, height: 10, "aria-hidden": "true" });
    plot.append(layer);
    const names = spec.rows.labels.map((l) => MechVLM.shortened(l.replaceAll("->", "→"), 32));
    left = Math.ceil(widest(layer, names, 12)) + 34;
    top = spec.cols.groups.length ? 26 : 6;
    row = Math.max(9, Math.min(26, Math.floor(340 / nRows)));
    edges = columnEdges(width - left - 8);
    const high = row * nRows, wide = edges[nCols];
    const below = (written ? widest(layer, words, 12) : 14) + 34;
    layer.setAttribute("height", top + high + below);
    plot.style.height = top + high + below + "px";
    paint(wide, high);
    rowLabels(layer, names, high);
    columnLabels(layer, high, wide, below);
    bands(layer);
    plot.append(marker);
    choose(chosen);
  }

  // One pixel wide where it will be, one high for each row. Where columns are thinner than
  // that, a pixel shows the strongest of its columns: no peak is averaged away.
  function rasterize(n) {
    const pixels = new ImageData(n, nRows), owner = new Int32Array(n);
    for (let r = 0; r < nRows; r++) {
      owner.fill(-1);
      for (let c = 0; c < nCols; c++) {
        const from = Math.min(n - 1, Math.floor(edges[c] * sharp));
        const to = Math.max(from + 1, Math.min(n, Math.floor(edges[c + 1] * sharp)));
        for (let x = from; x < to; x++)
          if (owner[x] < 0 || stronger(r * nCols + c, owner[x])) owner[x] = r * nCols + c;
      }
      const line = (up ? nRows - 1 - r : r) * n;
      owner.forEach((i, x) => pixels.data.set([...colour(values[i]), 255], 4 * (line + x)));
    }
    Object.assign(raster, { width: n, height: nRows });
    raster.getContext("2d").putImageData(pixels, 0, 0);
  }

  function paint(wide, high) {
    const canvas = el("canvas", "mv-cells");
    sharp = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.floor(wide * sharp));
    canvas.height = Math.ceil(high * sharp);
    Object.assign(canvas.style, { left: left + "px", top: top + "px", width: canvas.width / sharp + "px", height: high + "px" });
    rasterize(canvas.width);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(raster, 0, 0, canvas.width, canvas.height);
    for (const [, from] of spec.cols.groups)
      if (from) pen.clearRect(Math.round((edges[from] - 0.5) * sharp), 0, Math.ceil(sharp), canvas.height);
    plot.append(canvas);
  }

  function rowLabels(layer, names, high) {
    const step = Math.ceil(14 / row);
    names.forEach((name, r) => {
      if (r % step) return;
      const y = top + ((up ? nRows - 1 - r : r) + 0.5) * row;
      layer.append(svg("text", { x: left - 8, y: y + 4, "text-anchor": "end", class: up ? "mv-faint" : "" }, name));
    });
    const middle = top + high / 2;
    layer.append(svg("text", { x: 0, y: 0, "text-anchor": "middle", class: "mv-faint",
      transform: `translate(11 ${middle}) rotate(-90)` }, spec.rows.name));
  }

  function columnLabels(layer, high, wide, below) {
    const room = written ? 13.5 : widest(layer, words, 12) + 8;
    let free = -1e9;
    words.forEach((word, c) => {
      const x = left + (edges[c] + edges[c + 1]) / 2;
      if (!word || x < free) return;
      free = x + room - 0.5;
      const y = top + high + (written ? 8 : 18);
      layer.append(written
        ? svg("text", { "text-anchor": "end", transform: `translate(${x + 4} ${y}) rotate(-90)` }, word)
        : svg("text", { x, y, "text-anchor": "middle", class: "mv-faint" }, word));
    });
    layer.append(svg("text", { x: left + wide / 2, y: top + high + below - 6, "text-anchor": "middle",
      class: "mv-faint" }, spec.cols.name));
  }

  function bands(layer) {
    for (const [group, from, to, counted] of spec.cols.groups) {
      const x0 = left + edges[from] + 1, x1 = left + edges[to] - 1, strong = group === "image";
      const cls = strong ? "mv-strong" : "mv-faint";
      layer.append(svg("line", { x1: x0, x2: x1, y1: top - 6, y2: top - 6, class: cls }));
      const name = svg("text", { x: (x0 + x1) / 2, y: top - 12, "text-anchor": "middle", class: cls });
      layer.append(name);
      for (const word of [counted, group, ""]) { // the longest that has room
        name.textContent = word;
        if (name.getComputedTextLength() <= x1 - x0 + 4) break;
      }
    }
  }

  plot.addEventListener("pointermove", (event) => choose(at(event)));
  plot.addEventListener("pointerdown", (event) => choose(at(event)));
  plot.addEventListener("pointerleave", () => choose(-1));
  plot.addEventListener("mv-choose", (event) => choose(event.detail));
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [up ? 1 : -1, 0], ArrowDown: [up ? -1 : 1, 0] };
    const ends = { Home: [0, -nCols], End: [0, nCols] }; // of a row
    const move = moves[event.key] || ends[event.key];
    if (!move) return;
    event.preventDefault();
    const from = chosen < 0 ? best : chosen;
    const r = Math.min(nRows - 1, Math.max(0, Math.floor(from / nCols) + move[0]));
    const c = Math.min(nCols - 1, Math.max(0, (from % nCols) + move[1]));
    choose(r * nCols + c);
  });
  return redraw;
};
