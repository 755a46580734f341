// The banner of a server whose database is unreachable. All pages of this package show it above everything else.

/** Returns the option `onHealth` of Subscriptions: it shows the banner while the database is unreachable. */
export function outageBanner() {
  const banner = document.createElement("div");
  banner.className = "outage";
  banner.setAttribute("role", "status");
  banner.hidden = true;
  document.body.prepend(banner);
  return ({ database, since }) => {
    banner.hidden = database === "reachable";
    const time = new Date(since).toLocaleTimeString();
    banner.textContent = banner.hidden ? ""
      : `The server has had no connection to its database since ${time}. Nothing arrives until it is back.`;
  };
}
