"""The libraries of other languages against a server: what needs a JDK and Maven, and so is no part of the tests."""
