// The page of agents: sends a chosen file as the body of a request, which forms of htmx cannot.
"use strict";

(() => {
  const headers = { ...JSON.parse(document.body.getAttribute("hx-headers")), "HX-Request": "true" };

  function notice(html) {
    htmx.swap("#notice", html, { swapStyle: "innerHTML" });
  }

  function away() {
    const banner = document.createElement("div");
    banner.className = "banner bad";
    banner.textContent = texts.fileAway;
    document.getElementById("notice").replaceChildren(banner);
  }

  async function upload(form) {
    const fields = new FormData(form);
    const file = fields.get("file");
    const query = new URLSearchParams([...fields].filter(([name]) => name !== "file"));
    const answer = await fetch(`${form.dataset.upload}?${query}`, { method: "POST", body: file, headers });
    const html = await answer.text();
    if (answer.ok) {
      notice("");
      form.reset();
      form.closest("details").open = false;
      htmx.swap(form.dataset.target, html, { swapStyle: "outerHTML" });
      document.querySelector(`${form.dataset.target} [data-focus]`)?.focus();
    } else if (answer.headers.has("HX-Retarget")) {
      notice(html);
    } else {
      away();
    }
  }

  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!form.matches("[data-upload]")) return;
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    try {
      await upload(form);
    } catch {
      away();
    } finally {
      button.disabled = false;
    }
  });

  // A form that has done its work is folded away.
  document.addEventListener("htmx:afterRequest", (event) => {
    const form = event.detail.elt;
    if (form.matches?.("form[data-close]") && event.detail.successful) form.closest("details").open = false;
  });
})();
