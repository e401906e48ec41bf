"""Deliveries and the health of endpoints in the admin, read-only, with the action to redeliver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from fanfare.webhooks import deliveries, models

if TYPE_CHECKING:  # Django's classes take a type parameter only in their stubs
    DeliveryBase = admin.ModelAdmin[models.Delivery]
    HealthBase = admin.ModelAdmin[models.EndpointHealth]
else:
    DeliveryBase = HealthBase = admin.ModelAdmin


class ViewOnly:
    """Rows that only the server adds and changes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(models.Delivery)
class DeliveryAdmin(ViewOnly, DeliveryBase):
    # The columns after the first ones are outside of a narrow window.
    list_display = ("created_at", "event", "state", "attempts", "status", "channel", "endpoint", "took", "next_at")
    list_display_links = ("created_at", "event")
    list_filter = ("state", "event", "webhook__application", "webhook", "created_at")
    list_select_related = ("webhook__application",)
    search_fields = ("channel",)
    search_help_text = "Search by channel"
    show_full_result_count = False
    actions = ("redeliver",)
    empty_list = "A delivery appears here for each event of a webhook. Add webhooks on the page of an application."
    fieldsets = (
        (None, {"fields": ("event", "channel", "application", "endpoint", "state", "entry", "repeats", "repeated")}),
        ("The event", {"fields": ("shown_payload",)}),
        (
            "Last attempt",
            {"fields": ("attempts", "status", "error", "shown_answer", "took", "next_at", "created_at", "finished_at")},
        ),
    )

    class Media:
        css = {"all": ("fanfare/admin/deliveries.css",)}

    # -- columns and fields -------------------------------------------------------------------------------------------

    @admin.display(description="endpoint", ordering="webhook")
    def endpoint(self, delivery: models.Delivery) -> str:
        return delivery.webhook.masked_url

    @admin.display(description="application")
    def application(self, delivery: models.Delivery) -> str:
        return str(delivery.webhook.application)

    @admin.display(description="duration", ordering="duration_ms")
    def took(self, delivery: models.Delivery) -> str | None:
        return None if delivery.duration_ms is None else f"{delivery.duration_ms} ms"

    @admin.display(description="payload")
    def shown_payload(self, delivery: models.Delivery) -> SafeString:
        try:
            text = orjson.dumps(orjson.loads(delivery.payload), option=orjson.OPT_INDENT_2).decode()
        except ValueError:
            text = delivery.payload
        return format_html('<pre class="payload">{}</pre>', text)

    @admin.display(description="answer")
    def shown_answer(self, delivery: models.Delivery) -> SafeString | None:
        return format_html('<pre class="payload">{}</pre>', delivery.answer) if delivery.answer else None

    @admin.display(description="redelivered as")
    def repeated(self, delivery: models.Delivery) -> SafeString | None:
        later = delivery.repeated_by.order_by("-id").first()
        if later is None:
            return None
        return format_html('<a href="{}">{}</a>', self._page(later), f"{later.created_at:%Y-%m-%d %H:%M:%S} UTC")

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        more = {**(extra_context or {}), "may_redeliver": self.has_redeliver_permission(request)}
        return super().change_view(request, object_id, form_url, more)

    # -- redelivery ----------------------------------------------------------------------------------------------------

    def has_redeliver_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("fanfare.change_delivery")

    @admin.action(description="Redeliver selected deliveries", permissions=["redeliver"])
    def redeliver(self, request: HttpRequest, queryset: QuerySet[models.Delivery]) -> None:
        """Finished deliveries only: pending ones are sent anyway."""
        finished = list(queryset.exclude(state=models.State.PENDING).order_by("id"))
        deliveries.redeliver(finished)
        for delivery in finished:
            self.log_change(request, delivery, "Redelivered.")
        self.message_user(request, f"Deliveries to be sent again: {len(finished)}.", messages.SUCCESS)
        pending = queryset.filter(state=models.State.PENDING).count()
        if pending:
            self.message_user(request, f"Pending deliveries, which are sent anyway: {pending}.", messages.WARNING)

    def get_urls(self) -> list[URLPattern]:
        one = path(
            "<path:object_id>/redeliver/",
            self.admin_site.admin_view(self.redeliver_one),
            name="fanfare_delivery_redeliver",
        )
        return [one, *super().get_urls()]

    def redeliver_one(self, request: HttpRequest, object_id: str) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not self.has_redeliver_permission(request):
            raise PermissionDenied
        delivery = self.get_object(request, object_id)
        if delivery is None:
            raise Http404
        self.redeliver(request, models.Delivery.objects.filter(pk=delivery.pk))
        return HttpResponseRedirect(self._page(delivery))

    def _page(self, delivery: models.Delivery) -> str:
        name = self.admin_site.name
        return reverse("admin:fanfare_delivery_change", args=(delivery.pk,), current_app=name)


@admin.register(models.EndpointHealth)
class EndpointHealthAdmin(ViewOnly, HealthBase):
    list_display = (
        "webhook",
        "is_well",
        "failures",
        "waiting",
        "error",
        "application",
        "retry_at",
        "succeeded_at",
        "failed_at",
    )
    list_filter = ("is_open", "webhook__application")
    list_select_related = ("webhook__application",)
    empty_list = "An endpoint appears here after its first delivery. Add webhooks on the page of an application."
    fields = ("webhook", "application", "is_open", "failures", "retry_at", "succeeded_at", "failed_at", "error")

    def has_delete_permission(self, request: HttpRequest, obj: models.EndpointHealth | None = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[models.EndpointHealth]:
        pending = Count("webhook__deliveries", filter=Q(webhook__deliveries__state=models.State.PENDING))
        return super().get_queryset(request).annotate(pending=pending)

    @admin.display(description="application")
    def application(self, health: models.EndpointHealth) -> str:
        return str(health.webhook.application)

    @admin.display(description="circuit closed", boolean=True, ordering="is_open")
    def is_well(self, health: models.EndpointHealth) -> bool:
        return not health.is_open

    @admin.display(description="pending deliveries", ordering="pending")
    def waiting(self, health: models.EndpointHealth) -> int:
        return int(getattr(health, "pending", 0))
