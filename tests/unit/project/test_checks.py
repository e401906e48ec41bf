from __future__ import annotations

import pytest
from django.core import checks as django_checks

from myproject import checks


def ids(found):
    return [message.id for message in found]


def test_deployment_without_tls_is_a_warning(settings):
    settings.FANFARE_TLS = False
    assert ids(checks.encryption(None)) == ["fanfare.W002"]
    settings.FANFARE_TLS = True
    assert checks.encryption(None) == []


def test_deployment_with_loopback_hosts_only_is_a_warning(settings):
    settings.ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
    assert ids(checks.hosts(None)) == ["fanfare.W003"]
    settings.ALLOWED_HOSTS = ["realtime.example.com"]
    assert checks.hosts(None) == []


def test_demo_in_a_deployment_is_a_warning(settings):
    settings.FANFARE_DEMO = True
    assert ids(checks.demo(None)) == ["fanfare.W004"]
    settings.FANFARE_DEMO = False
    assert checks.demo(None) == []


@pytest.mark.django_db  # Django 6.1 asks the database for its features
def test_deployment_checks_run_with_deploy_only(settings):
    settings.FANFARE_TLS = False
    assert "fanfare.W002" not in ids(django_checks.run_checks())
    assert "fanfare.W002" in ids(django_checks.run_checks(include_deployment_checks=True))
