// The map: mosaics' HiPS from this server in Aladin Lite (aladin.js, vendored), with tracts, sources
// and what is new on it. Nothing is asked of another server.
import A from "./aladin.js";

const root = document.documentElement.dataset.root || "";
const which = document.getElementById("which");
const said = document.getElementById("said");

async function answered(path) {
  const reply = await fetch(root + path);
  if (!reply.ok) throw new Error(`${path}: ${reply.status}`);
  return reply.json();
}

// Its order, format and cuts Aladin takes from the map's properties.
function survey(name) {
  const options = { name, imgFormat: "fits", colormap: "inferno", stretch: "asinh" };
  return A.imageHiPS(`${location.origin}${root}/hips/${name}`, options);
}

const quiet = { fov: 6, cooFrame: "ICRS", log: false, hipsList: [], showSimbadPointerControl: false, samp: false,
  showLayersControl: false, showShareControl: false, showProjectionControl: false, showGotoControl: false,
  showSettingsControl: false };
let aladin;

async function show() {
  const name = which.value;
  said.textContent = "loading";
  const reply = await fetch(`${root}/hips/${name}/properties`);
  const words = await reply.text();
  if (aladin) aladin.setBaseImageLayer(survey(name));
  else aladin = A.aladin("#map", { ...quiet, survey: survey(name) });
  const marks = await answered(`/api/maps/${name}/marks`);
  aladin.removeOverlays();
  const tracts = A.graphicOverlay({ color: "#56B4E9", lineWidth: 1, name: "tracts" });
  const sources = A.catalog({ name: "sources", shape: "circle", color: "#009E73", sourceSize: 14, onClick: "showPopup" });
  const found = A.catalog({ name: "new", shape: "square", color: "#D55E00", sourceSize: 18, onClick: "showPopup" });
  aladin.addOverlay(tracts);
  aladin.addCatalog(sources);
  aladin.addCatalog(found);
  for (const one of marks.tracts) {
    const corners = [];
    for (let k = 0; k < one.region.length; k += 2) corners.push([one.region[k], one.region[k + 1]]);
    tracts.add(A.polygon(corners));
  }
  const point = (one) => A.source(one.ra_deg, one.dec_deg,
    { name: one.name, flux_mJy: (1e3 * (one.flux_jy ?? one.peak_jy)).toFixed(3), snr: one.snr?.toFixed(1) });
  sources.addSources(marks.sources.map(point));
  found.addSources(marks.new.map(point));
  const boxes = { tracts, sources, new: found };
  for (const [key, layer] of Object.entries(boxes)) {
    const box = document.getElementById(`show-${key}`);
    box.onchange = () => (box.checked ? layer.show() : layer.hide());
    box.onchange();
  }
  const ra = words.match(/hips_initial_ra\s*=\s*(\S+)/), dec = words.match(/hips_initial_dec\s*=\s*(\S+)/);
  aladin.gotoRaDec(Number(ra[1]), Number(dec[1]));
  said.textContent = `${marks.tracts.length} tracts, ${marks.sources.length} sources, ${marks.new.length} new`;
}

if (which) {
  which.onchange = () => show().catch((error) => { said.textContent = String(error); });
  A.init.then(which.onchange).catch((error) => { said.textContent = `the map needs WebGL: ${error}`; });
}
