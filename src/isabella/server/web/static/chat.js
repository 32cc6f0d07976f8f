// The chat page: follows the end of the conversation, keeps drafts, sends, edits and copies messages.
"use strict";

(() => {
  const scroll = document.getElementById("scroll");
  const newest = document.getElementById("newest");
  const composer = document.getElementById("composer");
  const { message, replaces } = composer.elements;

  // --- following -----------------------------------------------------------------------------------------------------

  // A reader at the end stays at the end; a reader who has scrolled up is not moved.
  let following = true;
  let position = 0;
  const later = () => document.getElementById("later");
  const atEnd = () => !later() && scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 8;
  const follow = (wanted) => {
    following = wanted;
    newest.hidden = following;
  };
  const toEnd = () => {
    follow(true);
    scroll.scrollTop = scroll.scrollHeight;
  };
  // Content may have been added below since the last event, so only scrolling up means leaving the end.
  const noteScroll = () => {
    if (atEnd()) follow(true);
    else if (scroll.scrollTop < position) follow(false);
    position = scroll.scrollTop;
  };
  scroll.addEventListener("scroll", noteScroll);
  // An opened step is being read where it is.
  scroll.addEventListener("toggle", () => follow(atEnd()), true);
  // The composer grows with its text and shrinks the messages above.
  new ResizeObserver(() => following && toEnd()).observe(scroll);
  document.addEventListener("console:beforeput", noteScroll);
  document.addEventListener("console:afterput", () => {
    markReplaced();
    trimAnnounced();
    if (following) toEnd();
  });
  newest.addEventListener("click", () => {
    // The messages between the ones found and the newest ones are not on the page.
    if (later()) location.assign(location.pathname);
    toEnd();
    scroll.focus({ preventScroll: true });
  });

  document.addEventListener("htmx:afterRequest", (event) => {
    const again = event.detail.successful && event.detail.elt.closest?.("form")?.closest(".again");
    if (!again) return;
    again.open = false;
    toEnd();
  });

  // Messages loaded above must not move the visible ones.
  let height = 0;
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { shouldSwap, target } = event.detail;
    if (shouldSwap && target?.id === "earlier") height = scroll.scrollHeight - scroll.scrollTop;
  });
  document.addEventListener("htmx:afterSwap", () => {
    if (!height) return;
    scroll.scrollTop = scroll.scrollHeight - height;
    height = 0;
  });

  // --- screen readers ------------------------------------------------------------------------------------------------

  // What was announced is not found a second time by those who read on.
  const announcer = document.getElementById("announcer");
  function announce(text) {
    const line = document.createElement("p");
    line.textContent = text;
    announcer.append(line);
  }
  function trimAnnounced() {
    while (announcer.childElementCount > 20) announcer.firstElementChild.remove();
  }

  // --- drafts --------------------------------------------------------------------------------------------------------

  // console.js removes them when the user signs out.
  const key = `isabella-draft ${composer.getAttribute("hx-post")}`;
  function keepDraft() {
    try {
      if (message.value) localStorage.setItem(key, JSON.stringify({ text: message.value, replaces: replaces.value }));
      else localStorage.removeItem(key);
    } catch {
      // Storage is disabled or full.
    }
  }
  function write(text, id = "") {
    message.value = text;
    replaces.value = id;
    document.getElementById("editing").hidden = !id;
    keepDraft();
  }
  try {
    const draft = JSON.parse(localStorage.getItem(key));
    if (draft && !message.value) write(draft.text, draft.replaces);
  } catch {
    // No draft.
  }
  message.addEventListener("input", keepDraft);

  // --- sending -------------------------------------------------------------------------------------------------------

  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (message.value.trim()) composer.requestSubmit();
    }
  });
  // Emptied at once, so that the next message can be typed; restored if the request fails.
  let sent = null;
  composer.addEventListener("htmx:beforeSend", (event) => {
    if (event.detail.elt !== composer) return;
    sent = { text: message.value, replaces: replaces.value };
    write("");
    document.getElementById("empty")?.remove();
  });
  composer.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.elt !== composer || !sent) return;
    if (event.detail.successful) toEnd();
    else write(sent.text + (message.value ? `\n${message.value}` : ""), sent.replaces);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.querySelector("[data-key='Escape']")?.click();
  });

  // --- editing -------------------------------------------------------------------------------------------------------

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-resend], [data-edit]");
    if (!button) return;
    const { resend, source, edit } = button.dataset;
    let text = resend;
    if (text === undefined) {
      const answer = await fetch(source).catch(() => null);
      if (!answer?.ok) {
        button.textContent = texts.notLoaded;
        return;
      }
      text = await answer.text();
    }
    write(text, edit);
    message.focus();
  });
  document.getElementById("new-message").addEventListener("click", () => {
    write("");
    message.focus();
  });

  // An answer in the place of an earlier one is in the history now: say of the messages between them that they are out.
  function markReplaced() {
    for (const state of document.querySelectorAll("[data-replaced]")) {
      const id = state.dataset.replaced;
      const all = [...document.querySelectorAll("#history > li, #live > .exchange")];
      const first = document.getElementById(`m-${id}`) || document.querySelector(`[data-message="${id}"]`);
      const from = all.indexOf(first?.closest("#history > li, .exchange"));
      const out = from < 0 ? [] : all.slice(from, all.indexOf(state.closest(".exchange")));
      for (const one of out) one.classList.add("aside");
      if (out.length) {
        const divider = document.createElement(out[0].tagName === "LI" ? "li" : "p");
        divider.className = "divider";
        divider.textContent = texts.border;
        out[0].before(divider);
      }
      delete state.dataset.replaced;
    }
  }

  // --- copying -------------------------------------------------------------------------------------------------------

  async function copyText(text) {
    // The clipboard is missing on pages that are neither encrypted nor local.
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  async function textOf(button) {
    if (button.dataset.copy === "code") return button.closest(".code").querySelector("code").textContent;
    const answer = await fetch(button.dataset.copy);
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    return answer.text();
  }
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    try {
      await copyText(await textOf(button));
      button.textContent = texts.copied;
    } catch {
      button.textContent = texts.notCopied;
    }
    announce(button.textContent);
  });

  // --- the place to begin at -----------------------------------------------------------------------------------------

  const at = scroll.dataset.anchor;
  const anchor = at && (document.getElementById(`m-${at}`) || document.getElementById(`m-${at}-a`));
  if (anchor) {
    anchor.scrollIntoView({ block: "center" });
    anchor.classList.add("found");
    anchor.focus({ preventScroll: true });
    follow(atEnd());
  } else {
    toEnd();
  }
})();
