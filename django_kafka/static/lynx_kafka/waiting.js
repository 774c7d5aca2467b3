"use strict";
// While a replay is on its way: ask whether it still is, and show the page anew when it is not.
(function () {
    const EVERY = 2000;
    const note = document.querySelector("[data-lynx-kafka-waits]");

    function inUse() {
        const selection = document.getSelection();
        const content = document.getElementById("content-main");
        return document.hidden || content.contains(document.activeElement) || (selection && !selection.isCollapsed);
    }

    async function look() {
        // Not while somebody reads, selects or types something here.
        if (!inUse()) {
            try {
                const answer = await fetch(note.dataset.lynxKafkaWaits, {credentials: "same-origin"});
                if (answer.ok && !(await answer.json()).waits && !inUse()) {
                    window.location.reload();
                    return;
                }
            } catch (error) {
                // The next look may be luckier.
            }
        }
        window.setTimeout(look, EVERY);
    }

    if (note !== null) {
        window.setTimeout(look, EVERY);
    }
})();
