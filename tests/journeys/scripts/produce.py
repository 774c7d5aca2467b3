"""A Django process that sends numbered records through the services and ends: `produce TOPIC COUNT`."""

from __future__ import annotations

import sys

import django


def main(topic: str, count: int) -> None:
    from django_kafka import services

    deliveries = [services.produce(topic, f"key-{number % 10}", {"n": number}) for number in range(count)]
    # Half of them is waited for, the rest is left to the end of the process.
    for delivery in deliveries[: count // 2]:
        delivery.result(30)
    print(f"Sent {count}.")


if __name__ == "__main__":
    django.setup()
    main(sys.argv[1], int(sys.argv[2]))
