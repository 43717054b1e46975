// The ranking that the address asks for takes the place of the first one; its data may be packed.
const wanted_ranking = new URLSearchParams(location.hash.slice(1)).get("ranking");
const template = [...document.querySelectorAll("template.view")].find((view) => view.dataset.ranking === wanted_ranking);
const source = (template ? template.content : document).querySelector("script.view");
if (template) {
  for (const part of ["header", "main"]) document.querySelector(`body > ${part}`).replaceWith(template.content.querySelector(part));
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const page = JSON.parse(source.dataset.encoding === "gzip" ? await unpacked(source.textContent) : source.textContent);
