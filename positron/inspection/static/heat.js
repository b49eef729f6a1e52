// Heat maps on a canvas, in the colours of the page.

/** Return 256 colours from --card to --accent of an element, as [r, g, b]. */
export function palette(element) {
  const style = getComputedStyle(element);
  const ends = ["--card", "--accent"].map((name) => rgb(style.getPropertyValue(name).trim()));
  return Array.from({ length: 256 }, (_, i) => {
    const t = (i / 255) ** 0.7; // small weights stay visible
    return ends[0].map((from, c) => Math.round(from + (ends[1][c] - from) * t));
  });
}

function rgb(colour) {
  const hex = /^#(.)(.)(.)$/.exec(colour);
  const full = hex ? `#${hex.slice(1).map((digit) => digit + digit).join("")}` : colour;
  return [1, 3, 5].map((at) => parseInt(full.slice(at, at + 2), 16));
}

/** Draw rows of numbers in [0, 1], one pixel each, into a canvas that CSS enlarges. Row t may have only t + 1 numbers. */
export function drawMatrix(canvas, rows, colours = palette(canvas)) {
  const columns = Math.max(...rows.map((row) => row.length));
  canvas.width = columns;
  canvas.height = rows.length;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows.length);
  rows.forEach((row, y) => {
    row.forEach((value, x) => {
      const at = 4 * (y * columns + x), colour = colours[Math.round(255 * Math.min(1, Math.max(0, value)))];
      for (let c = 0; c < 3; c++) image.data[at + c] = colour[c];
      image.data[at + 3] = 255;
    });
  });
  context.putImageData(image, 0, 0);
}

/**
 * Draw a square matrix with names of its rows (left) and columns (top); return {at(x, y)}, which finds a cell from a place in
 * CSS pixels. `row`: the row that is marked.
 */
export function drawLabelled(canvas, rows, names, row, size) {
  const style = getComputedStyle(canvas), context = canvas.getContext("2d"), scale = window.devicePixelRatio || 1;
  const font = (pixels) => `${pixels}px system-ui, sans-serif`;
  const n = rows.length;
  context.font = font(12);
  const longest = Math.min(90, Math.max(...names.map((name) => context.measureText(name).width)) + 8);
  const margin = (size - longest) / n >= 7 ? longest : 6; // too many tokens for labels
  const cell = Math.min(30, (size - margin) / n), side = margin + cell * n;
  canvas.style.width = canvas.style.height = `${side}px`;
  canvas.width = canvas.height = Math.round(side * scale);
  context.scale(scale, scale);
  const colours = palette(canvas);
  rows.forEach((weights, y) => {
    weights.forEach((value, x) => {
      const [r, g, b] = colours[Math.round(255 * Math.min(1, value))];
      context.fillStyle = `rgb(${r} ${g} ${b})`;
      context.fillRect(margin + x * cell, margin + y * cell, cell + 0.5, cell + 0.5);
    });
  });
  context.strokeStyle = style.getPropertyValue("--text");
  context.lineWidth = 1.5;
  context.strokeRect(margin, margin + row * cell, cell * (row + 1), cell);
  context.strokeStyle = style.getPropertyValue("--line");
  context.lineWidth = 1;
  context.strokeRect(margin - 0.5, margin - 0.5, cell * n + 1, cell * n + 1);
  if (margin > 6) {
    context.fillStyle = style.getPropertyValue("--text");
    context.font = font(Math.min(12, Math.max(7, cell)));
    context.textBaseline = "middle";
    names.forEach((name, i) => {
      const fitted = shortened(context, name, margin - 8), middle = margin + (i + 0.5) * cell;
      context.textAlign = "right";
      context.fillText(fitted, margin - 5, middle);
      context.save();
      context.translate(middle, margin - 5);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(fitted, 0, 0);
      context.restore();
    });
  }
  return {
    at(x, y) {
      const column = Math.floor((x - margin) / cell), line = Math.floor((y - margin) / cell);
      return line >= 0 && line < n && column >= 0 && column < n ? { row: line, column } : null;
    },
  };
}

function shortened(context, name, room) {
  if (context.measureText(name).width <= room) return name;
  let end = name.length;
  while (end > 1 && context.measureText(name.slice(0, end) + "…").width > room) end--;
  return name.slice(0, end) + "…";
}
