// What {% fanfare_client %} puts on a page: a connected client in `window.fanfare`.
//
// Where events of a channel may be missing after a reconnect, the document gets the event `fanfare:reset` with
// `detail.channel` and `detail.reason`: load that channel's state anew.
(() => {
  "use strict";

  if (window.fanfare) return; // the tag stands on the page twice
  const config = JSON.parse(document.getElementById("fanfare-config").textContent);

  // The cookie is newer than the page where somebody signed in in another window meanwhile.
  const csrfToken = () =>
    (config.csrfCookie &&
      document.cookie.split("; ").find((cookie) => cookie.startsWith(`${config.csrfCookie}=`))?.split("=")[1]) ||
    config.csrfToken;
  const authorization = (endpoint) => ({
    endpoint,
    params: config.params,
    headersProvider: () => ({ "X-CSRFToken": csrfToken() }),
  });

  if (window.FanfareResume) {
    window.fanfareResume = window.FanfareResume.install(Pusher, {
      onReset: (channel, reason) =>
        document.dispatchEvent(new CustomEvent("fanfare:reset", { detail: { channel, reason } })),
    });
  }
  window.fanfare = new Pusher(config.key, {
    ...config.options,
    channelAuthorization: authorization(config.authEndpoint),
    userAuthentication: authorization(config.userAuthEndpoint),
  });
  if (config.signIn) window.fanfare.signin();
})();
