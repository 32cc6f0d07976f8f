// Pictures and text files that are attached to a message: chosen, pasted or dropped, shown, and sent with it.
"use strict";

(() => {
  const composer = document.getElementById("composer");
  const box = document.getElementById("attachments");
  if (!composer || !box) return;
  const input = document.getElementById("attach-files");
  const data = document.getElementById("attach-data");
  const list = document.getElementById("attach-list");
  const note = document.getElementById("attach-note");
  const send = composer.querySelector("button.primary");

  const MOST = 8;
  const MIB = 1024 * 1024;
  // Three bytes are four characters of base64, of which the pictures of a message may have 8 MiB.
  const LARGEST_PICTURES = 6 * MIB;
  const LARGEST_TEXT = 0.5 * MIB;
  const LONGEST_TEXT = 100000;
  const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];

  let attached = [];
  const isPicture = (file) => PICTURES.includes(file.type);
  const size = (bytes) => bytes < MIB
    ? `${Math.max(1, Math.round(bytes / 1024))} kB`
    : `${(bytes / MIB).toLocaleString(language, { minimumFractionDigits: 1, maximumFractionDigits: 1 })} MB`;

  function say(text) {
    const line = document.createElement("p");
    line.className = "problem";
    line.textContent = text;
    note.replaceChildren(line);
  }

  async function base64url(file) {
    const url = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(file);
    });
    return url.slice(url.indexOf(",") + 1).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  }

  // A canvas, because the page loads no picture from anywhere but the backend.
  async function thumbnail(file) {
    const canvas = document.createElement("canvas");
    canvas.className = "thumb";
    canvas.width = canvas.height = 48;
    canvas.setAttribute("aria-hidden", "true");
    const picture = await createImageBitmap(file);
    const scale = Math.max(48 / picture.width, 48 / picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    canvas.getContext("2d").drawImage(picture, (48 - width) / 2, (48 - height) / 2, width, height);
    return canvas;
  }

  async function add(files) {
    for (const file of files) {
      const problem = await refusal(file);
      if (problem) {
        say(problem);
        continue;
      }
      const item = { file, name: file.name || "picture.png", data: "" };
      attached.push(item);
      item.data = await base64url(file).catch(() => "");
      if (!item.data) {
        attached = attached.filter((other) => other !== item);
        say(filled(texts.unreadable, { name: item.name }));
      }
    }
    await show();
  }

  async function refusal(file) {
    const name = file.name || texts.thePicture;
    if (attached.length >= MOST) return filled(texts.tooMany, { most: MOST, name });
    if (!file.size) return filled(texts.empty, { name });
    if (isPicture(file)) {
      const whole = attached.reduce((sum, item) => sum + (isPicture(item.file) ? item.file.size : 0), file.size);
      return whole > LARGEST_PICTURES ? filled(texts.largePicture, { name, size: size(file.size) }) : "";
    }
    if (file.size > LARGEST_TEXT) {
      return filled(texts.largeText, { name, size: size(file.size), most: LONGEST_TEXT.toLocaleString(language) });
    }
    const begin = new Uint8Array(await file.slice(0, 4096).arrayBuffer());
    return begin.includes(0) || file.type.startsWith("image/") || file.type === "application/pdf"
      ? filled(texts.wrongKind, { name })
      : "";
  }

  async function show() {
    const items = await Promise.all(
      attached.map(async (item) => {
        const line = document.createElement("li");
        if (isPicture(item.file)) {
          const canvas = await thumbnail(item.file).catch(() => null);
          if (canvas) line.append(canvas);
        }
        const name = document.createElement("span");
        name.textContent = `${item.name}, ${size(item.file.size)}`;
        name.dir = "auto";
        const remove = document.createElement("button");
        remove.type = "button";
        remove.className = "slight";
        remove.textContent = texts.remove;
        remove.setAttribute("aria-label", filled(texts.removeFile, { name: item.name }));
        remove.addEventListener("click", async () => {
          attached = attached.filter((other) => other !== item);
          note.replaceChildren();
          await show();
          composer.elements.message.focus();
        });
        line.append(name, remove);
        return line;
      }),
    );
    list.replaceChildren(...items);
    data.value = attached.length ? JSON.stringify(attached.map(({ name, data }) => ({ name, data }))) : "";
    await sight();
  }

  // Whether a model of the agent takes pictures is asked each time: it may have been switched.
  async function sight() {
    if (!attached.some((item) => isPicture(item.file))) {
      send.disabled = false;
      if (note.querySelector("[data-blind]")) note.replaceChildren();
      return;
    }
    try {
      const answer = await fetch(box.dataset.sees, { cache: "no-store" });
      if (!answer.ok) return;
      const text = new DOMParser().parseFromString(await answer.text(), "text/html").body;
      if (text.children.length) note.replaceChildren(...text.children);
      send.disabled = Boolean(note.querySelector("[data-blind]"));
    } catch {
      // The banner of the page says that Isabella does not answer; the server checks again.
    }
  }
  // A switch of the model replaces its menu.
  document.addEventListener("htmx:afterSwap", () => attached.length && sight());

  document.getElementById("attach")?.addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    const files = [...input.files];
    input.value = "";
    await add(files);
    composer.elements.message.focus();
  });
  composer.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    add(files);
  });
  const page = document.querySelector(".conversation");
  page.addEventListener("dragover", (event) => {
    if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
  });
  page.addEventListener("drop", (event) => {
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    add(files);
  });
  // Enter sends by itself, without the button.
  composer.addEventListener("submit", (event) => {
    if (!send.disabled) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
  composer.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.elt !== composer || !event.detail.successful) return;
    attached = [];
    note.replaceChildren();
    show();
  });
})();
