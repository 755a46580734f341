// The form for signing in.

import { post } from "./api.js";
import { h, setText } from "./dom.js";
import { seconds } from "./format.js";

/** Shows the form. `onSignedIn(session)` is called when the server has accepted the token. */
export function showSignIn(root, session, reason, onSignedIn) {
  root.className = "view view-sign-in";
  if (!session.sign_in?.length) {
    root.replaceChildren(h("div", { class: "empty" }, h("p", { text: "The inspector has no token yet" }),
      h("p", {}, "Set ", h("code", { text: "INSPECTOR_TOKEN" }), " (to read) or ", h("code", { text: "INSPECTOR_ADMIN_TOKEN" }),
        " (also to act) to a random text of at least 16 characters, and restart the server. On the server's own machine a development server needs no token.")));
    return;
  }
  const takesJwt = session.sign_in.includes("jwt");
  const field = h("input", {
    id: "token", type: "password", autocomplete: "off", autocapitalize: "none", spellcheck: "false",
    "aria-describedby": "token-reason token-error",
  });
  const problem = h("p", { id: "token-error", class: "field-error", role: "alert" });
  const button = h("button", { type: "submit", text: "Sign in" });
  const form = h("form", { class: "sign-in", novalidate: true },
    h("h2", { text: "Sign in" }),
    h("p", { id: "token-reason", class: "reason", role: "status", text: reason || (takesJwt
      ? "With the inspector's token, or with a JWT that has one of its roles."
      : "With the inspector's token.") }),
    h("label", { for: "token" }, "Token ", h("span", { class: "hint", text: "goes to the server once, and stays in no address and no storage" })),
    h("div", { class: "joined" }, field, button), problem);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const token = field.value.trim().replace(/^Bearer\s+/i, "");
    if (!token) {
      fail("Paste a token.");
      return;
    }
    button.disabled = true;
    try {
      const signedIn = await post("login", { token });
      field.value = "";
      onSignedIn(signedIn);
    } catch (error) {
      fail(error.code === "rate_limited" && error.retryAfter ? `${error.message} Try again in ${seconds(error.retryAfter)}.` : error.message);
    } finally {
      button.disabled = false;
    }
  });
  const fail = (text) => {
    setText(problem, text);
    field.setAttribute("aria-invalid", "true");
    field.focus();
  };
  root.replaceChildren(form);
  field.focus();
}
