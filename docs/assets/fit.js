// Fits a page into a narrow window: wide formulas become smaller, and the code in the cells of wide tables may break.
const SMALLEST = 0.5; // of the usual size; a formula that is still wider scrolls

function fitFormula(frame) {
  let size = 1;
  frame.style.fontSize = "";
  while (frame.scrollWidth > frame.clientWidth && size > SMALLEST) {
    size -= 0.05;
    frame.style.fontSize = `${size}em`;
  }
}

function fitTable(frame) {
  frame.classList.remove("narrow");
  if (frame.scrollWidth > frame.clientWidth) frame.classList.add("narrow");
}

function fit() {
  document.querySelectorAll("div.arithmatex").forEach(fitFormula);
  document.querySelectorAll(".md-typeset__scrollwrap").forEach(fitTable);
}

window.addEventListener("load", fit); // after formulas.js and the fonts
window.addEventListener("resize", fit);
