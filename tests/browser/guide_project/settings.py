from __future__ import annotations

from myproject.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "rest_framework", "rest_framework.authtoken", "tests.browser.guide_project"]  # noqa: F405
REST_FRAMEWORK = {"DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.TokenAuthentication"]}
ROOT_URLCONF = "tests.browser.guide_project.urls"
