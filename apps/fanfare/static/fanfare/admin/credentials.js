"use strict";

// Puts a Copy button beside the credentials of an application. Without a secure context the browser has no clipboard for
// scripts; then there is no button, and a click selects the whole text.
document.addEventListener("DOMContentLoaded", () => {
    if (!navigator.clipboard) {
        return;
    }
    const fields = document.querySelectorAll("[data-copy], .field-app_id .readonly, .field-key .readonly, #id_key");
    for (const field of fields) {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "copy-button";
        button.textContent = "Copy";
        button.addEventListener("click", async () => {
            try {
                await navigator.clipboard.writeText(field.value ?? field.textContent.trim());
                button.textContent = "Copied";
            } catch {
                button.textContent = "Not copied";
            }
            setTimeout(() => { button.textContent = "Copy"; }, 1500);
        });
        field.after(button);
    }
});
