"use strict";
// The map of all frames: a canvas with a cell for every token of every frame, lines beside it, the blocks' ends below.

const MOST_HEIGHT = 460, HIGHEST_CELL = 14, SMALLEST_WITH_SEAM = 5, SMALLEST_WITH_DOT = 3;

function drawMap(figure, film, marks, rows) {
  const canvas = figure.querySelector("canvas"), n = rows.length, length = rows[0].length;
  const style = getComputedStyle(document.documentElement), ratio = window.devicePixelRatio || 1;
  const width = canvas.parentElement.clientWidth, height = Math.round(Math.min(n * HIGHEST_CELL, MOST_HEIGHT));
  const paint = canvas.getContext("2d"), cell = { w: width / length, h: height / n };
  const colour = Object.fromEntries(
    Object.entries(marks).map(([letter, mark]) => [letter, style.getPropertyValue(`--${mark.colour}`).trim()]));
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  paint.scale(ratio, ratio);
  const seam = Math.min(cell.w, cell.h) >= SMALLEST_WITH_SEAM ? 0.75 : 0;
  const ink = style.getPropertyValue("--text").trim();
  for (let y = 0; y < n; y++) {
    for (let x = 0; x < length; x++) {
      const letter = film.lanes[0].marks[y][x], left = x * cell.w, top = y * cell.h;
      paint.fillStyle = colour[letter];
      paint.fillRect(left, top, cell.w - seam, cell.h - seam);
      drawPattern(paint, marks[letter].pattern, left, top, cell.w - seam, cell.h - seam, ink);
    }
  }
}

// What tells cells apart without colour.
function drawPattern(paint, pattern, left, top, w, h, ink) {
  const x = left + w / 2, y = top + h / 2;
  if (pattern === "none" || h < SMALLEST_WITH_DOT) return;
  paint.fillStyle = ink;
  if (w < SMALLEST_WITH_DOT) {
    paint.fillRect(left, y - 0.5, w, 1);
  } else if (pattern === "wave" || pattern === "dots") {
    paint.beginPath();
    paint.arc(x, y, Math.max(0.8, Math.min(w, h) * (pattern === "wave" ? 0.18 : 0.12)), 0, 7);
    paint.fill();
  } else if (pattern === "dash") {
    paint.fillRect(left + w * 0.2, y - 0.5, w * 0.6, 1);
  } else if (pattern === "double") {
    paint.fillRect(left + w * 0.2, y - 1.5, w * 0.6, 1);
    paint.fillRect(left + w * 0.2, y + 1, w * 0.6, 1);
  }
}

function drawCurves(figure, film, n) {
  const svg = figure.querySelector("svg");
  svg.setAttribute("viewBox", `0 0 1 ${n}`);
  svg.replaceChildren(...film.curves.map(curve => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    let line = "";
    curve.values.forEach((value, y) => {
      if (value !== null) line += `${line ? "L" : "M"}${value / curve.most} ${y + 0.5}`;
    });
    path.setAttribute("d", line);
    return path;
  }));
  const most = film.curves[0].most;
  figure.querySelector(".most").textContent = most === 1 ? "1" : most.toFixed(2);
}

function drawEnds(figure, film, length) {
  let begin = 0;
  figure.querySelector(".ends").replaceChildren(...film.ends.map((end, number) => {
    const block = document.createElement("span");
    block.style.left = `${100 * begin / length}%`;
    block.style.width = `${100 * (end - begin) / length}%`;
    if (film.ends.length <= 40) block.textContent = number + 1;
    begin = end;
    return block;
  }));
}

function startMap(figure, state, seek) {
  if (!figure) return { load() {}, show() {} };
  const draw = () => drawMap(figure, state.film, state.marks, state.rows);
  const frames = figure.querySelector(".frames");
  const point = event => {
    const box = frames.getBoundingClientRect();
    seek(Math.floor((event.clientY - box.top) / box.height * state.rows.length));
  };
  frames.addEventListener("pointerdown", point);
  frames.addEventListener("pointermove", event => { if (event.buttons) point(event); });
  new ResizeObserver(draw).observe(frames.parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  figure.hidden = false;
  return {
    load() {
      const n = state.rows.length;
      figure.querySelector(".grid").style.maxWidth = `${3 * state.rows[0].length + 9}rem`;  // no cell gets wide
      figure.querySelector(".low").textContent = state.film.ticks[0];
      figure.querySelector(".high").textContent = state.film.ticks[n - 1];
      drawCurves(figure, state.film, n);
      drawEnds(figure, state.film, state.rows[0].length);
      draw();
    },
    show(frame) {
      for (const line of figure.querySelectorAll(".now")) line.style.top = `${100 * (frame + 0.5) / state.rows.length}%`;
    },
  };
}
