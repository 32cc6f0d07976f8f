// The chat page: follows the end of the conversation, and sends messages.
"use strict";

(() => {
  const scroll = document.getElementById("scroll");

  // A reader at the end stays at the end; a reader who has scrolled up is not moved.
  let following = true;
  let position = 0;
  const atEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 8;
  const toEnd = () => {
    following = true;
    if (scroll) scroll.scrollTop = scroll.scrollHeight;
  };
  // Content may have been added below since the last event, so only scrolling up means leaving the end.
  const noteScroll = () => {
    if (!scroll) return;
    if (atEnd()) following = true;
    else if (scroll.scrollTop < position) following = false;
    position = scroll.scrollTop;
  };
  if (scroll) {
    scroll.addEventListener("scroll", noteScroll);
    // An opened step is being read where it is.
    scroll.addEventListener("toggle", () => (following = atEnd()), true);
    // The composer grows with its text and shrinks the messages above.
    new ResizeObserver(() => following && toEnd()).observe(scroll);
    document.addEventListener("console:beforeput", noteScroll);
    document.addEventListener("console:afterput", () => following && toEnd());
  }

  const composer = document.getElementById("composer");
  if (composer) {
    const message = composer.elements.message;
    message.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (message.value.trim()) composer.requestSubmit();
      }
    });
    // Emptied at once, so that the next message can be typed; restored if the request fails.
    composer.addEventListener("htmx:beforeSend", () => {
      composer.dataset.sent = message.value;
      message.value = "";
      document.getElementById("empty")?.remove();
    });
    composer.addEventListener("htmx:afterRequest", (event) => {
      if (event.detail.elt !== composer) return;
      if (!event.detail.successful) message.value = composer.dataset.sent + (message.value ? `\n${message.value}` : "");
      else toEnd();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") document.querySelector("[data-key='Escape']")?.click();
    });
    document.addEventListener("click", (event) => {
      const resend = event.target.closest?.("[data-resend]");
      if (!resend) return;
      message.value = resend.dataset.resend;
      message.focus();
    });
  }

  if (scroll) {
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
    const anchor = scroll.dataset.anchor && document.getElementById(`m-${scroll.dataset.anchor}`);
    if (anchor) {
      anchor.scrollIntoView({ block: "center" });
      anchor.classList.add("found");
    } else {
      toEnd();
    }
  }

  // --- copying -------------------------------------------------------------------------------------------------------

  // The clipboard is missing on pages that are neither encrypted nor local.
  async function copy(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    try {
      await copy(button.closest(".code").querySelector("code").textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not copied";
    }
  });
})();
