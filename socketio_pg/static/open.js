// The banner of a server that asks for no token. All pages of this package show it above everything else.

/** Shows the banner while `socket` is connected to a server with AUTH=off, as `server_hello` reports it. */
export function warnIfOpen(socket) {
  const banner = document.createElement("aside");
  banner.className = "open-server";
  banner.setAttribute("aria-label", "Security warning");
  banner.hidden = true;
  const text = document.createElement("p");
  text.append(
    element("strong", "This server is open."),
    " Every client may use its channels without a token. Set ", element("code", "AUTH=required"),
    " and a key (", element("code", "JWT_SECRET"), ") before other machines can reach it.",
  );
  banner.append(text);
  document.body.prepend(banner);
  socket.on("server_hello", ({ auth }) => { banner.hidden = auth !== "off"; });
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}
