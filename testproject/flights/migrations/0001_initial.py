from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Flight",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("carrier", models.CharField(help_text="The airline's code, as in UA.", max_length=8)),
                ("number", models.PositiveIntegerField()),
                ("origin", models.CharField(help_text="The airport's code, as in JFK.", max_length=8)),
                ("destination", models.CharField(max_length=8)),
                ("scheduled", models.DateTimeField(help_text="When it was to leave.")),
                (
                    "departed",
                    models.TimeField(
                        blank=True, help_text="By the clock at the gate; empty when cancelled.", null=True
                    ),
                ),
                (
                    "delay",
                    models.IntegerField(blank=True, help_text="In minutes; negative when it left early.", null=True),
                ),
                ("tail_number", models.CharField(blank=True, max_length=16)),
            ],
            options={
                "ordering": ["scheduled", "carrier", "number"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("scheduled", "carrier", "number", "origin"), name="one_row_per_flight"
                    )
                ],
            },
        ),
    ]
