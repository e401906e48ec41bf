// node --require routes.cjs: the copy of uWebSockets.js on npm writes a route's parameter <name>, soketi :name.
// Routes are made once, at the start; nothing that is measured passes here.

const uws = require("uWebSockets.js");

const { App } = uws;
uws.App = (...options) => {
  const application = App(...options);
  for (const method of ["ws", "get", "post", "any"]) {
    const add = application[method].bind(application);
    application[method] = (pattern, ...rest) => {
      add(pattern.replace(/:(\w+)/g, "<$1>"), ...rest);
      return application;
    };
  }
  return application;
};
