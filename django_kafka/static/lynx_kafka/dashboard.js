// Draws what is live anew: not while the tab is hidden, while something in it is in use, or when it is switched off.
(() => {
    "use strict";
    const live = document.getElementById("lynx-kafka-live");
    const box = document.getElementById("lynx-kafka-refreshes");
    const trouble = document.getElementById("lynx-kafka-trouble");
    const every = 1000 * Number(live.dataset.every);
    const off = "lynx-kafka-refreshes-off";
    let asking = false;

    const inUse = () => {
        const chosen = document.getSelection();
        const focused = document.activeElement;
        return (!chosen.isCollapsed && live.contains(chosen.anchorNode)) ||
            (live.contains(focused) && focused.matches("input, select, textarea"));
    };

    // What has no id is found again by where it leads.
    const same = (element) => element.id
        ? `#${CSS.escape(element.id)}`
        : element.hasAttribute("href") && `a[href="${CSS.escape(element.getAttribute("href"))}"]`;

    const show = (fresh) => {
        for (const one of live.querySelectorAll("details[id]")) {
            const other = fresh.querySelector(`#${CSS.escape(one.id)}`);
            if (other) {
                other.open = one.open;
            }
        }
        const places = [...live.querySelectorAll(".lynx-kafka-scroll")].map((one) => one.scrollLeft);
        const focused = live.contains(document.activeElement) && same(document.activeElement);
        live.replaceChildren(...fresh.childNodes);
        live.querySelectorAll(".lynx-kafka-scroll").forEach((one, number) => {
            one.scrollLeft = places[number] || 0;
        });
        if (focused) {
            live.querySelector(focused)?.focus({preventScroll: true});
        }
    };

    const refresh = async () => {
        if (asking || !box.checked || document.hidden || inUse()) {
            return;
        }
        asking = true;
        try {
            const url = new URL(window.location.href);
            url.searchParams.set("fragment", "1");
            const answer = await fetch(url, {redirect: "error", signal: AbortSignal.timeout(10000)});
            const text = answer.ok ? await answer.text() : "";
            const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("lynx-kafka-live");
            if (!fresh) {
                throw new Error(`${answer.status}`);
            }
            if (!inUse() && box.checked) {
                show(fresh);
            }
            trouble.textContent = "";
        } catch {
            trouble.textContent = trouble.dataset.trouble;
        } finally {
            asking = false;
        }
    };

    box.checked = sessionStorage.getItem(off) === null;
    box.addEventListener("change", () => {
        if (box.checked) {
            sessionStorage.removeItem(off);
            refresh();
        } else {
            sessionStorage.setItem(off, "1");
        }
    });
    document.getElementById("lynx-kafka-refreshing").hidden = false;
    document.addEventListener("visibilitychange", refresh);
    setInterval(refresh, every);
})();
