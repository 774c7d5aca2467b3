// Parts of a page that say data-refresh="<seconds>" are drawn anew by the server, and not while they are in use.
"use strict";
(() => {
    const longest = 30;

    const inUse = (part) => {
        const active = document.activeElement;
        if (part.contains(active) && active.matches("input, textarea, select, button, a")) {
            return true;
        }
        return [...part.querySelectorAll("input, textarea")].some((field) => field.value !== field.defaultValue);
    };

    const look = async (id, seconds, failures) => {
        const part = document.getElementById(id);
        if (!part || !part.dataset.refresh) {
            return;
        }
        let failed = failures;
        if (!document.hidden && !inUse(part)) {
            try {
                const answer = await fetch(window.location.href, { credentials: "same-origin", redirect: "error" });
                if (!answer.ok) {
                    throw new Error(String(answer.status));
                }
                const page = new DOMParser().parseFromString(await answer.text(), "text/html");
                const drawn = page.getElementById(id);
                const now = document.getElementById(id);
                if (drawn && now && !inUse(now)) {
                    now.replaceWith(document.importNode(drawn, true));
                }
                failed = 0;
            } catch {
                failed += 1;
            }
        }
        // The server may be down, or the person logged out: ask less and less often.
        window.setTimeout(look, 1000 * Math.min(longest, seconds * 2 ** failed), id, seconds, failed);
    };

    for (const part of document.querySelectorAll("[data-refresh][id]")) {
        const seconds = Math.max(1, Number(part.dataset.refresh) || 5);
        window.setTimeout(look, 1000 * seconds, part.id, seconds, 0);
    }
})();
