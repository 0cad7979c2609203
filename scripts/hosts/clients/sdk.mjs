// A matrix-js-sdk client that a test drives: one JSON request a line on stdin ({id, op, …}), one JSON answer a line on
// stdout ({id, ok} or {id, error}). Received messages are kept per room in the order in which the
// client showed them, with the time (ms) at which they came. nio.py answers the same requests.
import { createInterface } from "node:readline";
import "fake-indexeddb/auto";

if (!Promise.withResolvers) {
    // Node 20 lacks it, and without it the SDK hangs silently after its first sync.
    Promise.withResolvers = function () {
        let resolve, reject;
        const promise = new Promise((a, b) => ([resolve, reject] = [a, b]));
        return { promise, resolve, reject };
    };
}
const out = process.stdout;
for (const m of ["log", "info", "warn", "debug", "trace", "error"]) {
    console[m] = (...args) => process.env.PLEXUS_CLIENT_LOG && process.stderr.write(`${m}: ${args.join(" ")}\n`);
}
const sdk = await import("matrix-js-sdk");
const { cryptoOps } = await import("./crypto.mjs");
const { SlidingSync } = await import("matrix-js-sdk/lib/sliding-sync.js");
const { logger } = await import("matrix-js-sdk/lib/logger.js");
logger.setLevel?.(process.env.PLEXUS_CLIENT_LOG ? "debug" : "silent");

let client, base;
const statuses = {}; // "send 429" -> how often, as the server answered the SDK
const rooms = new Map(); // room ID -> [{sender, body, at, event_id, type}]
let coming; // content of the newest plexus.joining; the SDK does not say of which room it is
const waiters = new Set();

function received(event, room) {
    if (!event.getId() || event.getId().startsWith("~")) return;
    const list = rooms.get(room) ?? rooms.set(room, []).get(room);
    if (list.some((m) => m.event_id === event.getId())) return;
    list.push({
        sender: event.getSender(), body: event.getContent().body ?? null, type: event.getType(),
        at: Date.now(), event_id: event.getId(), encrypted: event.isEncrypted(),
    });
    wake();
}
function wake() {
    for (const w of waiters) w();
}

// until resolves when check() returns something, asked again after each event. What a check awaits may have no event of its own, so such
// a check is also asked again every recheck ms.
const recheck = 200;
function until(check, timeout, what) {
    return new Promise((resolve, reject) => {
        let asking = false, again = false, tick;
        const timer = setTimeout(() => end(() => reject(new Error(`timed out waiting for ${what()}`))), timeout);
        function end(then) {
            clearTimeout(timer);
            clearInterval(tick);
            waiters.delete(look);
            then();
        }
        function judge(found) {
            if (found === undefined || found === false || found === null) return;
            end(() => resolve(found));
        }
        function look() {
            if (asking) { again = true; return; }
            try {
                const found = check();
                if (!(found instanceof Promise)) return judge(found);
                tick ??= setInterval(look, recheck);
                asking = true;
                found.then(judge, (e) => end(() => reject(e))).finally(() => {
                    asking = false;
                    if (again && waiters.has(look)) { again = false; look(); }
                });
            } catch (e) { end(() => reject(e)); }
        }
        waiters.add(look);
        look();
    });
}
const cryptography = cryptoOps({ client: () => client, until, wake });

// counted is fetch, with the answers counted by the path's last word that is no identifier.
async function counted(url, init) {
    const answer = await fetch(url, init);
    const what = /\/(sync|send|keys\/claim)(\/|\?|$)/.exec(String(url))?.[1] ?? "other";
    const key = `${what} ${answer.status}`;
    statuses[key] = (statuses[key] ?? 0) + 1;
    return answer;
}

async function json(method, path, body, token) {
    const answer = await fetch(base + path, {
        method, body: body === undefined ? undefined : JSON.stringify(body),
        headers: { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) },
    });
    return { status: answer.status, body: await answer.json() };
}

// slidingSync asks for what a client with a list of rooms shows.
function slidingSync(limit) {
    const shown = { timeline_limit: limit, required_state: [["*", "*"]] };
    return new SlidingSync(base, new Map([["rooms", { ranges: [[0, 20]], ...shown }]]), shown, client, 20000);
}

const ops = {
    ...cryptography.ops,
    async register({ url, user, password, token }) {
        base = url;
        const path = "/_matrix/client/v3/register";
        const first = await json("POST", path, { username: user, password });
        if (first.status !== 401) throw new Error(`register: ${first.status} ${JSON.stringify(first.body)}`);
        const auth = { type: "m.login.registration_token", token, session: first.body.session };
        const done = await json("POST", path, { username: user, password, auth, initial_device_display_name: "test" });
        if (done.status !== 200) throw new Error(`register: ${done.status} ${JSON.stringify(done.body)}`);
        return done.body;
    },
    async login({ url, user, password }) {
        base = url;
        const r = await sdk.createClient({ baseUrl: url }).loginRequest({ type: "m.login.password", identifier: { type: "m.id.user", user }, password });
        return r;
    },
    // at names the node for a session that another process logged in.
    async at({ url }) { base = url; },
    // start begins to sync as the user of a login or registration answer. limit is of the timelines in /sync: beyond it a client
    // has a gap, and pages back. With sliding it asks by simplified sliding sync.
    async start({ session, crypto, limit = 20, sliding = false }) {
        client = sdk.createClient({
            baseUrl: base, userId: session.user_id, accessToken: session.access_token, deviceId: session.device_id, fetchFn: counted,
            cryptoCallbacks: cryptography.callbacks,
        });
        if (crypto) {
            await client.initRustCrypto({ useIndexedDB: false });
            cryptography.attach(client);
        }
        client.on("Room.timeline", (event, room, toStart) => {
            if (toStart) return;
            if (event.isEncrypted() && event.isBeingDecrypted?.()) return; // shown when decrypted
            if (event.getType() === "m.room.encrypted") return;
            received(event, room?.roomId ?? event.getRoomId());
        });
        client.on("event", (event) => {
            if (event.getType() !== "plexus.joining") return;
            coming = event.getContent();
            wake();
        });
        client.on("Event.decrypted", (event) => (event.isDecryptionFailure() ? wake() : received(event, event.getRoomId())));
        for (const e of ["Room.myMembership", "RoomState.events", "Room", "RoomMember.membership", "sync"]) client.on(e, wake);
        const filter = new sdk.Filter(session.user_id);
        filter.setTimelineLimit(limit); // initialSyncLimit is of the first /sync only
        await client.startClient({ initialSyncLimit: limit, lazyLoadMembers: true, ...(sliding ? { slidingSync: slidingSync(limit) } : { filter }) });
        await until(() => client.getSyncState() === "SYNCING" || undefined, 20000, () => "the first sync");
        return {};
    },
    async createRoom({ encrypted, name, invite, power }) {
        const initial = encrypted ? [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }] : [];
        const r = await client.createRoom({
            name, preset: "private_chat", invite, initial_state: initial,
            ...(power ? { power_level_content_override: power } : {}),
        });
        return { room: r.room_id };
    },
    async invite({ room, user }) { await client.invite(room, user); return {}; },
    async waitInvite({ room, timeout = 20000 }) {
        await until(() => client.getRoom(room)?.getMyMembership() === "invite" || undefined, timeout, () => `an invite to ${room}`);
        return {};
    },
    async join({ room, via }) { await client.joinRoom(room, via ? { viaServers: via } : {}); return {}; },
    // waitComing waits until a room whose join is under way is shown with its name and how much of it has come, after which arrived, and returns that.
    async waitComing({ room, after = 0, timeout = 60000 }) {
        const shown = () => {
            const r = client.getRoom(room);
            const name = r?.currentState.getStateEvents("m.room.name", "")?.getContent().name;
            return name && coming?.arrived > after ? { name: r.name, membership: r.getMyMembership(), ...coming } : undefined;
        };
        await until(shown, timeout, () => `${room} to be shown while it comes (${JSON.stringify(coming)})`);
        return shown();
    },
    // open does what a client does whose user opens a room: it reads a state event, the members, and the history up to the beginning. waited says how often the
    // server said that it is to ask again.
    async open({ room }) {
        const r = client.getRoom(room);
        let waited = 0;
        const ask = async (f) => {
            for (;;) {
                try {
                    return await f();
                } catch (e) {
                    if (e.httpStatus !== 429) throw e;
                    waited++;
                    await new Promise((again) => setTimeout(again, e.getRetryAfterMs()));
                }
            }
        };
        const { name } = await client.getStateEvent(room, "m.room.name", "");
        await Promise.all([ask(() => r.loadMembersIfNeeded()), ask(() => client.scrollback(r, 50))]);
        const { events } = await ops.history({ room });
        return { name, members: r.getJoinedMemberCount(), listed: r.getJoinedMembers().length, waited, events };
    },
    async waitMember({ room, user, membership = "join", timeout = 20000 }) {
        await until(() => client.getRoom(room)?.getMember(user)?.membership === membership || undefined, timeout, () => `${user} to ${membership}`);
        return {};
    },
    async waitEncrypted({ room, timeout = 20000 }) {
        await until(() => client.getRoom(room)?.hasEncryptionStateEvent() || undefined, timeout, () => `encryption in ${room}`);
        return {};
    },
    async send({ room, body }) {
        const at = Date.now();
        const r = await client.sendMessage(room, { msgtype: "m.text", body });
        return { event_id: r.event_id, at, acked: Date.now() };
    },
    // sendMany sends count messages "prefix 0" … one after another.
    async sendMany({ room, prefix, count }) {
        const sent = [];
        for (let i = 0; i < count; i++) sent.push(await ops.send({ room, body: `${prefix} ${i}` }));
        return { sent };
    },
    // waitMessages waits for count messages whose body begins with prefix and returns them in the order shown.
    async waitMessages({ room, prefix, count, timeout = 30000 }) {
        const mine = () => (rooms.get(room) ?? []).filter((m) => typeof m.body === "string" && m.body.startsWith(prefix));
        await until(() => mine().length >= count || undefined, timeout, () => `${count} messages ${prefix} (${mine().length} came)`);
        return { messages: mine() };
    },
    // history pages back to the room's beginning through the SDK and returns the whole timeline, oldest first.
    async history({ room }) {
        const r = client.getRoom(room);
        for (let i = 0; i < 100 && r.oldState.paginationToken !== null; i++) await client.scrollback(r, 50);
        await Promise.all(r.getLiveTimeline().getEvents().map((e) => client.decryptEventIfNeeded(e)));
        return { events: r.getLiveTimeline().getEvents().map((e) => ({ event_id: e.getId(), type: e.getType(), sender: e.getSender(), body: e.getContent().body ?? null })) };
    },
    async state({ room, type, key = "", content }) { return await client.sendStateEvent(room, type, content, key); },
    async getState({ room, type, key = "" }) { return await client.getStateEvent(room, type, key); },
    async members({ room }) { return (await client.members(room)).chunk.map((e) => [e.state_key, e.content.membership]); },
    // retry asks again at once, which the SDK puts off when the node was away.
    async retry() { client.retryImmediately(); return {}; },
    // logout ends the device, not this process: the next login of the user is another's.
    async logout() { await client.logout(true); return {}; },
    // crowd makes the client exceed its rate limit while it sends messages, until one was refused at first; limited is how many were.
    async crowd({ room, prefix }) {
        const refused = () => statuses["send 429"] ?? 0;
        const crowd = (async () => {
            while (!refused()) await Promise.allSettled(Array.from({ length: 100 }, () => client.whoami()));
        })();
        const sent = [];
        while (!refused()) sent.push(await ops.send({ room, body: `${prefix} ${sent.length}` }));
        await crowd;
        return { sent, limited: refused() };
    },
    // loginToken logs another device in by a token that this one asked for, and proves that the token is spent.
    async loginToken({ password }) {
        const ask = await client.requestLoginToken().catch((e) => { if (e.httpStatus !== 401) throw e; return e.data; });
        const auth = { type: "m.login.password", identifier: { type: "m.id.user", user: client.getUserId() }, password, session: ask.session };
        const { login_token: token } = await client.requestLoginToken(auth);
        const login = () => sdk.createClient({ baseUrl: base }).loginRequest({ type: "m.login.token", token });
        const session = await login();
        const again = await login().then(() => "", (e) => e.errcode);
        return { prompted: !!ask.session, session, again };
    },
    async statuses() { return statuses; },
    async stop() { client?.stopClient(); setTimeout(() => process.exit(0), 10); return {}; },
};

for await (const line of createInterface({ input: process.stdin })) {
    const { id, op, ...args } = JSON.parse(line);
    Promise.resolve()
        .then(() => ops[op](args))
        .then((ok) => out.write(JSON.stringify({ id, ok: ok ?? {} }) + "\n"),
              (e) => out.write(JSON.stringify({ id, error: String(e?.stack ?? e) }) + "\n"));
}
process.exit(0);
