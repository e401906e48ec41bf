# Help texts only: no table changes.

import re

import django.core.validators
from django.db import migrations, models

import fanfare.applications.credentials
import fanfare.applications.limits
import fanfare.applications.models.application
import fanfare.applications.models.channel_rule
import fanfare.applications.models.encrypted
import fanfare.applications.models.webhook_endpoint


class Migration(migrations.Migration):
    dependencies = [
        ("fanfare", "0005_encrypted_secrets"),
    ]

    operations = [
        migrations.AlterField(
            model_name="application",
            name="allowed_origins",
            field=models.TextField(
                blank=True,
                default="",
                help_text="The sites whose pages may connect, one per line: https://example.com, example.com or *.example.com. Empty: all sites.",
                validators=[fanfare.applications.models.application.validate_origins],
            ),
        ),
        migrations.AlterField(
            model_name="application",
            name="app_id",
            field=models.CharField(
                default=fanfare.applications.credentials.generate_id,
                error_messages={"unique": "Another application has this id."},
                help_text="Part of the URL to which servers publish. It cannot be changed later.",
                max_length=15,
                unique=True,
                validators=[
                    django.core.validators.RegexValidator(
                        re.compile("\\A[1-9][0-9]{0,14}\\Z"), "The id has 1 to 15 digits and starts with no zero."
                    )
                ],
                verbose_name="app id",
            ),
        ),
        migrations.AlterField(
            model_name="application",
            name="declared",
            field=models.BooleanField(
                default=False,
                editable=False,
                help_text="The application is defined by FANFARE_APPS, which overwrites this row.",
            ),
        ),
        migrations.AlterField(
            model_name="application",
            name="enabled",
            field=models.BooleanField(
                default=True,
                help_text="A disabled application refuses all requests, and its connections are closed at once.",
            ),
        ),
        migrations.AlterField(
            model_name="application",
            name="secret",
            field=fanfare.applications.models.encrypted.SecretField(
                default=fanfare.applications.credentials.generate_secret,
                help_text="It allows publishing to every channel, so it must not reach browsers or phones.",
                max_length=320,
                validators=[
                    django.core.validators.RegexValidator(
                        re.compile("\\A[!-~]{1,128}\\Z"),
                        "The secret has 1 to 128 printable ASCII characters and no space.",
                    )
                ],
            ),
        ),
        migrations.AlterField(
            model_name="application",
            name="subscription_counts",
            field=models.BooleanField(
                default=False,
                help_text="Subscribers get the number of subscribers of their channel, except on presence channels.",
            ),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="client_events",
            field=models.BooleanField(default=False, help_text="Client events are kept, too."),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="history_seconds",
            field=models.PositiveIntegerField(
                default=3600,
                help_text="Seconds after which an event is deleted.",
                validators=[
                    fanfare.applications.limits.AtLeast("history_seconds"),
                    fanfare.applications.limits.AtMost("history_seconds"),
                ],
            ),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="history_size",
            field=models.PositiveIntegerField(
                default=1000,
                help_text="The number of events that each channel keeps.",
                validators=[
                    fanfare.applications.limits.AtLeast("history_size"),
                    fanfare.applications.limits.AtMost("history_size"),
                ],
            ),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="max_replay_bytes",
            field=models.PositiveIntegerField(
                default=1048576,
                help_text="The same limit, in bytes of the missed events.",
                validators=[
                    fanfare.applications.limits.AtLeast("max_replay_bytes"),
                    fanfare.applications.limits.AtMost("max_replay_bytes"),
                ],
            ),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="max_replay_entries",
            field=models.PositiveIntegerField(
                default=300,
                help_text="A client that missed more events than this gets none of them, and a message about the gap.",
                validators=[
                    fanfare.applications.limits.AtLeast("max_replay_entries"),
                    fanfare.applications.limits.AtMost("max_replay_entries"),
                ],
            ),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="pattern",
            field=models.CharField(
                help_text="A channel name, in which * matches any characters: private-orders-*. Only the first rule that matches a channel applies to it.",
                max_length=1000,
                validators=[fanfare.applications.models.channel_rule.validate_pattern],
            ),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="position",
            field=models.PositiveSmallIntegerField(
                default=0,
                help_text="Rules are tried in ascending order. Of equal positions, the older rule comes first.",
            ),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="rewind_count",
            field=models.PositiveIntegerField(
                default=0,
                help_text="A new subscriber gets at most this many of the newest kept events. 0: no limit.",
                validators=[
                    fanfare.applications.limits.AtLeast("rewind_count"),
                    fanfare.applications.limits.AtMost("rewind_count"),
                ],
            ),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="rewind_seconds",
            field=models.PositiveIntegerField(
                default=0,
                help_text="A new subscriber gets no event that is older than this many seconds. 0: no limit. If both are 0, a new subscriber gets no kept events.",
                validators=[
                    fanfare.applications.limits.AtLeast("rewind_seconds"),
                    fanfare.applications.limits.AtMost("rewind_seconds"),
                ],
            ),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="stream_cancel",
            field=models.BooleanField(
                default=False, help_text="Subscribers may cancel streams with the client event client-fanfare-cancel."
            ),
        ),
        migrations.AlterField(
            model_name="channelrule",
            name="stream_window_ms",
            field=models.PositiveIntegerField(
                default=0,
                help_text="Milliseconds in which the appends of a stream are joined. 0: the value of FANFARE_STREAM_WINDOW_MS.",
                validators=[
                    fanfare.applications.limits.AtLeast("stream_window_ms"),
                    fanfare.applications.limits.AtMost("stream_window_ms"),
                ],
            ),
        ),
        migrations.AlterField(
            model_name="delivery",
            name="payload",
            field=models.TextField(help_text="The event as JSON, as in the body of the request."),
        ),
        migrations.AlterField(
            model_name="endpointhealth",
            name="is_open",
            field=models.BooleanField(
                default=False,
                help_text="While the circuit is open, one event at a time is sent as a probe.",
                verbose_name="circuit open",
            ),
        ),
        migrations.AlterField(
            model_name="outboxevent",
            name="exclude",
            field=models.CharField(
                blank=True,
                default="",
                help_text="The socket id of the client that does not get the event.",
                max_length=64,
            ),
        ),
        migrations.AlterField(
            model_name="outboxevent",
            name="frame",
            field=models.TextField(help_text="The JSON text that subscribers get."),
        ),
        migrations.AlterField(
            model_name="webhookendpoint",
            name="batching",
            field=models.BooleanField(
                default=False, help_text="A request may hold several events. Otherwise, each request holds one."
            ),
        ),
        migrations.AlterField(
            model_name="webhookendpoint",
            name="channel_prefix",
            field=models.CharField(
                blank=True,
                default="",
                help_text="Only events of channels whose names start with it, such as presence-. Empty: all channels.",
                max_length=1000,
                validators=[fanfare.applications.models.webhook_endpoint.validate_channel_prefix],
            ),
        ),
        migrations.AlterField(
            model_name="webhookendpoint",
            name="enabled",
            field=models.BooleanField(
                default=True,
                help_text="A paused webhook sends nothing. Its events wait, up to FANFARE_WEBHOOKS_MAX_PENDING, and are sent when it is enabled again.",
            ),
        ),
        migrations.AlterField(
            model_name="webhookendpoint",
            name="event_types",
            field=models.JSONField(
                blank=True,
                default=list,
                help_text="If none is chosen, all events are sent.",
                validators=[fanfare.applications.models.webhook_endpoint.validate_event_types],
            ),
        ),
        migrations.AlterField(
            model_name="webhookendpoint",
            name="headers",
            field=models.JSONField(
                blank=True,
                default=dict,
                help_text="Headers of every request, one per line, such as Authorization: Bearer abc.",
                validators=[fanfare.applications.models.webhook_endpoint.validate_headers],
            ),
        ),
        migrations.AlterField(
            model_name="webhookendpoint",
            name="url",
            field=models.CharField(
                help_text="An http or https URL. Every request is signed with the application's secret.",
                max_length=2000,
                validators=[fanfare.applications.models.webhook_endpoint.validate_url],
                verbose_name="URL",
            ),
        ),
    ]
