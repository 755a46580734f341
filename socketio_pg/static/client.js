// Loads the stock Socket.IO client: the local copy from the page's <script>, or else the copy on the CDN.

// The browser refuses the CDN's file if it does not match this hash.
const CDN_CLIENT = "https://cdn.socket.io/4.8.4/socket.io.min.js";
const CDN_INTEGRITY = "sha384-fBrXvbDtHoeKWJ/hcA6M+YGueiDW+h45I7V6F2kD1S8bOkrF9rZYPLVkCR6BLR/1";

/** Returns `io`. Throws an Error with instructions for the user when the client cannot be loaded. */
export async function loadClient() {
  if (globalThis.io) return globalThis.io; // loaded by the page's <script>, which runs before modules
  const script = document.createElement("script");
  script.src = CDN_CLIENT;
  script.integrity = CDN_INTEGRITY;
  script.crossOrigin = "anonymous";
  try {
    await new Promise((resolve, reject) => {
      script.addEventListener("load", resolve);
      script.addEventListener("error", reject);
      document.head.append(script);
    });
    return globalThis.io;
  } catch {
    throw new Error(
      "The Socket.IO client could not be loaded, so this page cannot connect. Run “npm ci” and “npm run vendor” " +
      `to put it into static/vendor, or give this browser access to ${new URL(CDN_CLIENT).host}. Then reload the page.`,
    );
  }
}
