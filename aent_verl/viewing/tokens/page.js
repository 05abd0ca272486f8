"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // One step at a time; the address names it, so that it can be shared and the back button works.
  const steps = [...document.querySelectorAll("section.step")];
  const [choose, previous, next] = ["choose", "previous", "next"].map(id => document.getElementById(id));
  const top = document.querySelector(".bar");
  let current = 0;
  const show = event => {
    const all = location.hash === "#all" && steps.length > 1;
    current = Math.max(0, steps.findIndex(step => "#" + step.id === location.hash));
    steps.forEach((step, i) => { step.hidden = !all && i !== current; });
    choose.value = all ? "all" : steps[current].id;
    previous.disabled = all || current === 0;
    next.disabled = all || current === steps.length - 1;
    hide();
    if (event && top.getBoundingClientRect().top <= 0) (all ? steps[0] : steps[current]).scrollIntoView();
  };
  const go = id => { location.hash = id; };
  choose.addEventListener("change", () => go(choose.value));
  previous.addEventListener("click", () => go(steps[current - 1].id));
  next.addEventListener("click", () => go(steps[current + 1].id));
  window.addEventListener("hashchange", show);

  // The values of the token under the pointer, the finger or the keyboard's cursor.
  const names = {
    H: "entropy", p: "probability", logp: "log-prob", A: "advantage", w: "policy weight", b: "bonus weight",
  };
  const tip = document.getElementById("tip");
  let token = null;
  const hide = () => {
    if (!token) return;
    token.title = token.dataset.values;
    token.classList.remove("now");
    token = null;
    tip.hidden = true;
  };
  const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });
  const reveal = target => {
    if (target === token) return;
    hide();
    token = target;
    token.dataset.values = token.title;
    token.title = "";
    token.classList.add("now");
    const place = [...token.parentNode.children].indexOf(token) + 1;
    const list = document.createElement("dl");
    const values = token.dataset.values.split(" ");
    for (let i = 0; i < values.length; i += 2) list.append(element("dt", names[values[i]]), element("dd", values[i + 1]));
    list.append(element("dt", "token"), element("dd", `${place}/${token.parentNode.children.length}`));
    const text = token.textContent.replace(/[\n\t]/g, "").replace(/ /g, "␣");
    tip.replaceChildren(element("code", text), list);
    if (token.classList.contains("o")) tip.append(element("div", "outside the loss"));
    tip.hidden = false;
    const box = token.getClientRects()[0];
    const below = box.bottom + tip.offsetHeight + 8 < window.innerHeight;
    const left = Math.max(4, Math.min(box.left, root.clientWidth - tip.offsetWidth - 4));
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${window.scrollY + (below ? box.bottom + 6 : box.top - tip.offsetHeight - 6)}px`;
  };
  for (const kind of ["mouseover", "click"]) {
    document.addEventListener(kind, event => {
      const target = event.target.closest(".t > i");
      if (!target) { hide(); return; }
      reveal(target);
      // On a phone the values lie over the page's end.
      if (kind === "click") target.scrollIntoView({ block: "nearest" });
    });
  }
  for (const response of document.querySelectorAll(".t")) {
    response.tabIndex = 0;
    response.setAttribute("role", "group");
    response.setAttribute("aria-label", "Response; left and right arrow keys go through its tokens");
  }
  document.addEventListener("focusin", event => {
    const response = event.target;
    if (response.matches(".t:focus-visible") && response.firstElementChild) reveal(response.firstElementChild);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") hide();
    const way = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const response = document.activeElement;
    if (!way || !response.matches(".t")) return;
    const inside = token && token.parentNode === response;
    const target = inside ? token[way] : response.firstElementChild;
    if (!target) return;
    event.preventDefault();
    target.scrollIntoView({ block: "nearest" });
    reveal(target);
  });
  show();
})();
