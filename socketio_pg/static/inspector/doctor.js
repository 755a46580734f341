// The view Doctor: checks of the server and its database, run on demand.

import { get, post } from "./api.js";
import { copyButton } from "./copying.js";
import { empty, h, setText } from "./dom.js";
import { plural, seconds, time } from "./format.js";

const LEVELS = ["error", "warning", "ok"];
const NAMES = { error: "Does not work", warning: "Needs attention", ok: "Passed" };

/** Shows the view. */
export function showDoctor(root) {
  const run = h("button", { type: "button", text: "Run the checks" });
  const status = h("p", { class: "hint", role: "status" });
  const list = h("div", { class: "findings" }, empty("Not checked yet", "The doctor looks at settings, the database, the schema, permissions and the log. It changes nothing."));
  const problem = h("p", { class: "field-error", role: "alert" });
  let findings = [];
  const copy = copyButton("Copy", "the findings as text", () => findings.map(({ check, level, found, remedy }) => `${level}: ${check}: ${found}${remedy ? `\n  ${remedy}` : ""}`).join("\n"));
  copy.hidden = true;
  root.append(h("section", { "aria-labelledby": "doctor-title" },
    h("div", { class: "head" }, h("h2", { id: "doctor-title", text: "Doctor" }), status, h("div", { class: "tools" }, copy, run)), problem, list));

  let isStopped = false;
  function show(answer) {
    findings = [...answer.findings].sort((one, other) => LEVELS.indexOf(one.level) - LEVELS.indexOf(other.level));
    copy.hidden = false;
    const numbers = LEVELS.map((level) => [level, findings.filter((finding) => finding.level === level).length]);
    setText(status, [numbers.slice(0, 2).filter(([, number]) => number).map(([level, number]) => plural(number, level)).join(", ") || "all passed",
      answer.at ? `at ${time(answer.at * 1000)}` : "", answer.seconds ? `in ${seconds(answer.seconds)}` : "",
      answer.complete === false ? "some checks did not end" : ""].filter(Boolean).join(" · "));
    list.replaceChildren(...numbers.filter(([, number]) => number).map(([level, number]) => h(level === "ok" ? "details" : "div", { class: `level ${level}` },
      h(level === "ok" ? "summary" : "h3", { text: `${NAMES[level]} ` }, h("span", { class: "hint", text: String(number) })),
      h("ul", {}, ...findings.filter((finding) => finding.level === level).map(finding)))));
  }

  async function check() {
    run.disabled = true;
    setText(run, "Checking…");
    setText(problem, "");
    try {
      const answer = await post("doctor");
      if (!isStopped) show(answer);
    } catch (error) {
      setText(problem, error.message);
    } finally {
      run.disabled = false;
      setText(run, "Run the checks");
    }
  }
  run.addEventListener("click", check);
  get("doctor").then((answer) => { if (answer.findings && !isStopped && run.textContent !== "Checking…") show(answer); }, () => {});
  return { keys: [{ keys: ["r"], text: "Run the checks", run: check }], stop() { isStopped = true; } };
}

function finding({ check, level, found, remedy }) {
  return h("li", { class: "finding" },
    h("span", { class: `mark ${level}`, "aria-hidden": "true" }), h("div", {},
      h("p", {}, h("span", { class: "check-name mono", text: check }), found),
      remedy ? h("p", { class: "remedy" }, h("span", { class: "hint", text: "Remedy: " }), remedy) : null));
}
