// Draws the reference of the HTTP API. Nothing can be sent from here: a request must be signed, and a page must not
// hold the secret that signs it.
"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", dress);
dress();

const reference = document.getElementById("reference");
window.SwaggerUIBundle({
  domNode: reference,
  url: reference.dataset.description,
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  docExpansion: "list",
  supportedSubmitMethods: [],
  validatorUrl: null, // it would ask another host
});
