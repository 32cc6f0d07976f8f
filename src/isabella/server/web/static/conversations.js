// The conversations beside the chat: a drawer on narrow screens, a filter of names, and a list that stays current.
"use strict";

(() => {
  const talks = document.getElementById("talks");
  if (!talks) return;
  const narrow = matchMedia("(max-width: 51.99rem)");
  const list = () => document.getElementById("talks-list");
  const query = document.getElementById("talks-q");

  // --- the drawer ------------------------------------------------------------------------------------------------

  const opener = () => document.getElementById("talks-open");
  const isOpen = () => talks.classList.contains("open");

  function show(open) {
    talks.classList.toggle("open", open);
    opener()?.setAttribute("aria-expanded", String(open));
    const rest = document.querySelectorAll(".top, .chat > .agents, .chat > .conversation");
    for (const element of rest) element.inert = open;
    (open ? query : opener())?.focus();
  }

  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#talks-open")) show(true);
    else if (isOpen() && (event.target.closest?.("#talks-close") || !talks.contains(event.target))) show(false);
  });
  // Before the page's own Escape, which stops an answer.
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Escape" || !isOpen()) return;
      event.stopPropagation();
      event.preventDefault();
      show(false);
    },
    true,
  );
  narrow.addEventListener("change", () => isOpen() && show(false));

  const reload = () => htmx.ajax("GET", talks.dataset.source, { target: "#talks-list", swap: "outerHTML" });

  // --- names that match while they are typed -----------------------------------------------------------------------

  function filter() {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const item of list().querySelectorAll(":scope > ul > li, :scope > details > ul > li")) {
      const name = item.querySelector(".talk").textContent.toLowerCase();
      item.hidden = !words.every((word) => name.includes(word));
    }
    const archived = document.getElementById("talks-archived");
    if (archived && words.length) archived.open = true;
  }
  query.addEventListener("input", () => {
    // A list of what was found stays until the words are taken away.
    if (!("found" in list().dataset)) filter();
    else if (!query.value) reload();
  });

  // --- a new name, and the new order ---------------------------------------------------------------------------------

  // The first answer names a conversation, and each one moves it up.
  let running = 0;
  document.addEventListener("console:afterput", () => {
    const now = document.querySelectorAll("#live .working").length;
    const ended = now < running;
    running = now;
    // Nothing is replaced under the hands of a user who is renaming or searching.
    if (ended && !query.value && !isOpen() && !document.getElementById("talk-menu")?.open) reload();
  });
})();
