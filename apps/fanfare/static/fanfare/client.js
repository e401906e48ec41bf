// The script of {% fanfare_client %}: it connects a client and puts it into `window.fanfare`.
//
// Where events of a channel may be missing after a reconnect, the document gets the event `fanfare:reset` with
// `detail.channel` and `detail.reason`: load the state of that channel again.
(() => {
  "use strict";

  if (window.fanfare) return; // the tag is on the page twice
  const config = JSON.parse(document.getElementById("fanfare-config").textContent);

  // The cookie is newer than the page if the visitor has signed in in another window since.
  const csrfToken = () =>
    (config.csrfCookie &&
      document.cookie.split("; ").find((cookie) => cookie.startsWith(`${config.csrfCookie}=`))?.split("=")[1]) ||
    config.csrfToken;
  const authorization = (endpoint) => ({
    endpoint,
    params: config.params,
    headersProvider: () => ({ [config.csrfHeader]: csrfToken() }),
  });

  // The browser knows the address of the page; the server behind a proxy may know another one.
  const options = { ...config.options };
  const secure = location.protocol === "https:";
  if (config.samePlace && (secure || location.protocol === "http:")) {
    options.wsHost = location.hostname;
    options.wsPort = options.wssPort = Number(location.port) || (secure ? 443 : 80);
    options.forceTLS = secure;
  }

  window.fanfareResume = window.FanfareResume.install(Pusher, {
    recover: config.recover,
    since: config.since,
    onReset: (channel, reason) =>
      document.dispatchEvent(new CustomEvent("fanfare:reset", { detail: { channel, reason } })),
  });
  window.fanfare = new Pusher(config.key, {
    ...options,
    channelAuthorization: authorization(config.authEndpoint),
    userAuthentication: authorization(config.userAuthEndpoint),
  });
  if (config.signIn) window.fanfare.signin();
})();
