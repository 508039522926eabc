// Keeps what is marked data-live fresh, goes to a group, asks for reprocessing.
const EVERY_MS = 5000;
const fresh = document.getElementById("fresh");

async function refresh() {
  if (document.hidden || "still" in document.body.dataset) return; // an error page stays as it is
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = page.title;
    for (const old of document.querySelectorAll("[data-live]")) {
      const now = page.getElementById(old.id);
      const open = [...old.querySelectorAll("details")].map((one) => one.open);
      if (!now) old.remove();
      else if (now.innerHTML !== old.innerHTML.replaceAll(' open=""', "")) {
        old.className = now.className;
        old.innerHTML = now.innerHTML;
        old.querySelectorAll("details").forEach((one, i) => (one.open = open[i] ?? false));
      }
    }
    const image = page.getElementById("image"), shown = document.getElementById("image");
    if (image?.dataset.made !== shown?.dataset.made) { // made again, or for the first time
      shown?.remove();
      if (image) { document.getElementById("state").after(image); window.makeViewers(image); }
    }
    for (const now of page.querySelectorAll("[data-live]")) { // a section that was not there before: failed groups, plots
      if (!document.getElementById(now.id)) document.querySelector("#headline, #image, #state")?.after(now);
    }
    fresh.textContent = `as of ${new Date().toISOString().slice(11, 19)} UTC`;
    fresh.classList.remove("lost");
  } catch (error) {
    fresh.textContent = `no answer since ${fresh.textContent.match(/\d\d:\d\d:\d\d/) ?? "the page was loaded"}`;
    fresh.classList.add("lost");
  }
}
setInterval(refresh, EVERY_MS);
document.addEventListener("visibilitychange", refresh);

document.querySelector("form.reprocess")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target, said = form.querySelector("output");
  let answer, text;
  try {
    answer = await fetch(`${document.documentElement.dataset.root}/api/reprocess/${encodeURIComponent(form.dataset.group)}`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-api-key": form.key.value },
      body: JSON.stringify({ from_stage: form.from_stage.value || null }),
    });
    text = await answer.json();
  } catch (error) {
    said.textContent = `not sent: ${error.message}`;
    return;
  }
  said.textContent = text.message ?? (typeof text.detail === "string" ? text.detail : JSON.stringify(text.detail));
  said.className = answer.ok ? "good" : "fail";
  refresh();
});
