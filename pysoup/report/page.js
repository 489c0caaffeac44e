"use strict";
// What is pointed at, or has the keyboard's focus, says more beside it. Without this, every mark has its title.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true"); // the marks' labels say the same
  document.body.append(tip);
  let shown = null;

  const hide = () => {
    tip.hidden = true;
    if (shown) shown.classList.remove("on");
    shown = null;
  };

  const show = (mark) => {
    hide();
    shown = mark;
    mark.classList.add("on");
    const list = document.createElement("dl");
    const head = document.createElement("strong");
    for (const [name, value] of JSON.parse(mark.dataset.tip)) {
      if (value === "") {
        head.textContent = name;
        continue;
      }
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value;
      list.append(term, text);
    }
    tip.replaceChildren(head, list);
    tip.hidden = false;
    const box = mark.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), width - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tip.style.top = `${(above > 0 ? above : box.bottom + 8) + window.scrollY}px`;
  };

  for (const drawing of document.querySelectorAll("svg")) {
    const marks = [...drawing.querySelectorAll(".mark")];
    marks.forEach((mark, place) => {
      mark.querySelector("title").remove(); // or the browser shows it too
      // One stop for the Tab key a figure; arrows move inside.
      mark.setAttribute("tabindex", place ? "-1" : "0");
      mark.addEventListener("mouseenter", () => show(mark));
      mark.addEventListener("mouseleave", hide);
      mark.addEventListener("focus", () => show(mark));
      mark.addEventListener("blur", hide);
      mark.addEventListener("click", () => mark.focus());
      mark.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (event.key === "Escape") hide();
        if (!step) return;
        event.preventDefault();
        const next = marks[(place + step + marks.length) % marks.length];
        mark.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    });
  }
  window.addEventListener("beforeprint", () => {
    hide();
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
})();
