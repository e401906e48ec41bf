// A "Copy" button in the header of each snippet. Browsers have no clipboard on plain-http pages of other hosts; then there is no button.
"use strict";

if (navigator.clipboard) {
  for (const snippet of document.querySelectorAll(".snippet")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(snippet.querySelector("code").textContent.trim() + "\n");
        button.textContent = "Copied";
      } catch {
        button.textContent = "Select it and press Ctrl+C";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    snippet.querySelector("header").append(button);
  }
}
