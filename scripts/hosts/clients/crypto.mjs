// What a person does about encryption, with matrix-js-sdk: identities, verification, secret storage, key backup, dehydrated devices.
// sdk.mjs takes these requests too. Each wait ends with what it waits for or with an error.
import { CryptoEvent, VerificationPhase, VerificationRequestEvent, VerifierEvent } from "matrix-js-sdk/lib/crypto-api/index.js";
import { decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api/recovery-key.js";
import { RustBackupManager } from "matrix-js-sdk/lib/rust-crypto/backup.js";

RustBackupManager.maxBackupLoopStartDelayMillis = 100; // it is there for servers with many clients

// cryptoOps gives the requests. client() is the client that runs; until and wake are of sdk.mjs.
export function cryptoOps({ client, until, wake }) {
    const crypto = () => client().getCrypto();
    let secretKey = null; // of the secret storage: what a person writes down
    let requests = []; // verifications that others asked for
    let verification = null; // the one that runs: {request, sas, done}
    let rehydrated = null;

    const callbacks = {
        getSecretStorageKey: async ({ keys }) => (secretKey ? [Object.keys(keys)[0], secretKey] : null),
        cacheSecretStorageKey: (id, info, key) => { secretKey = key; },
    };
    const prove = (password, prompts) => async (makeRequest) => {
        try {
            await makeRequest(null);
        } catch (e) {
            if (e.httpStatus !== 401 || !password) throw e;
            prompts.push(e.data.flows.map((f) => f.stages));
            const user = client().getUserId();
            await makeRequest({ type: "m.login.password", identifier: { type: "m.id.user", user }, password, session: e.data.session });
        }
    };
    const phase = (request, wanted) => until(() => {
        if (request.phase === VerificationPhase.Cancelled) throw new Error(`the verification was cancelled: ${request.cancellationCode}`);
        return request.phase >= wanted || undefined;
    }, 30000, () => `phase ${wanted} of the verification, it is in ${request.phase}`);
    // compare begins the short authentication string and answers with it; confirmSas says that it is the same on both screens.
    async function compare(request, starts) {
        request.on(VerificationRequestEvent.Change, wake);
        await phase(request, VerificationPhase.Ready);
        const verifier = starts ? await request.startVerification("m.sas.v1") : await until(() => request.verifier, 30000, () => "the other to begin");
        verification = { request, sas: verifier.getShowSasCallbacks(), done: null };
        verifier.on(VerifierEvent.ShowSas, (sas) => { verification.sas = sas; wake(); });
        verification.done = verifier.verify();
        verification.done.catch(() => wake()); // confirmSas tells
        const { sas } = await until(() => verification.sas, 30000, () => "the emoji");
        return { emoji: sas.emoji.map(([symbol]) => symbol).join(" "), decimal: sas.decimal.join(" ") };
    }
    async function trustIn(user) {
        const status = await crypto().getUserVerificationStatus(user);
        const devices = {};
        for (const id of (await crypto().getUserDeviceInfo([user], true)).get(user)?.keys() ?? []) {
            const d = await crypto().getDeviceVerificationStatus(user, id);
            devices[id] = { owner: !!d?.signedByOwner, trusted: !!d?.crossSigningVerified };
        }
        return { verified: status.isCrossSigningVerified(), was: status.wasCrossSigningVerified(), changed: status.needsUserApproval, devices };
    }

    const ops = {
        // bootstrapCrossSigning makes an identity, or another one (reset). prompts are the flows that were asked for.
        async bootstrapCrossSigning({ password, reset = false }) {
            const prompts = [];
            await crypto().bootstrapCrossSigning({ setupNewCrossSigning: reset, authUploadDeviceSigningKeys: prove(password, prompts) });
            await until(() => crypto().isCrossSigningReady(), 20000, () => "cross-signing to be ready");
            return { prompts };
        },
        // secureBackup makes secret storage and in it a key backup, and answers with the recovery key.
        async secureBackup() {
            const key = await crypto().createRecoveryKeyFromPassphrase();
            await crypto().bootstrapSecretStorage({ createSecretStorageKey: async () => key, setupNewKeyBackup: true });
            await until(() => crypto().isSecretStorageReady(), 20000, () => "secret storage to be ready");
            return { key: key.encodedPrivateKey };
        },
        async waitBackedUp({ sessions, timeout = 30000 }) {
            let count = 0;
            const ask = () => client().http.authedRequest("GET", "/room_keys/version", undefined, undefined, { prefix: "/_matrix/client/v3" });
            await until(async () => (count = (await ask()).count) >= sessions, timeout, () => `${sessions} room keys in the backup, ${count} are`);
            return { count };
        },
        // unlock gives a new device the identity from secret storage, by the recovery key.
        async unlock({ key }) {
            secretKey = decodeRecoveryKey(key);
            const me = client().getUserId();
            await until(async () => (await crypto().getUserVerificationStatus(me)).known, 20000, () => "the public keys of one's identity");
            await crypto().bootstrapCrossSigning({});
            await until(() => crypto().isCrossSigningReady(), 20000, () => "cross-signing to be ready");
        },
        // restore reads the key backup, whose key comes from secret storage.
        async restore() {
            await crypto().loadSessionBackupPrivateKeyFromSecretStorage();
            const check = await crypto().checkKeyBackupAndEnable();
            const { imported, total } = await crypto().restoreKeyBackup();
            return { imported, total, trusted: !!check?.trustInfo.trusted };
        },
        // verifyUser asks in the room, as a client does for another person; verifyDevice asks another device of the same user.
        async verifyUser({ user, room }) {
            await until(async () => (await crypto().getUserVerificationStatus(user)).known, 20000, () => `the identity of ${user}`);
            return await compare(await crypto().requestVerificationDM(user, room), true);
        },
        async verifyDevice({ device }) {
            const me = client().getUserId();
            await until(async () => (await crypto().getUserDeviceInfo([me])).get(me)?.has(device), 20000, () => `the device ${device}`);
            return await compare(await crypto().requestDeviceVerification(me, device), true);
        },
        async acceptVerification({ user }) {
            const request = await until(() => requests.find((r) => r.otherUserId === user), 30000, () => `${user} to ask for verification`);
            requests = requests.filter((r) => r !== request);
            await request.accept();
            return await compare(request, false);
        },
        async confirmSas() {
            await verification.sas.confirm();
            await verification.done;
            await phase(verification.request, VerificationPhase.Done);
        },
        // waitTrust waits until what is known of the user is as wanted: {verified, was, changed, devices: {id: {owner, trusted} or null}}.
        async waitTrust({ user, want, timeout = 30000 }) {
            let got;
            const fits = (w, g) => Object.entries(w).every(([k, v]) => (v === null ? g?.[k] === undefined : typeof v === "object" ? fits(v, g?.[k]) : g?.[k] === v));
            await until(async () => fits(want, (got = await trustIn(user))), timeout, () => `${JSON.stringify(want)}, it is ${JSON.stringify(got)}`);
            return got;
        },
        // waitSecrets waits for the private keys that another of the user's devices gives when it has verified this one.
        async waitSecrets({ timeout = 30000 }) {
            let has;
            await until(async () => {
                const { privateKeysCachedLocally: keys } = await crypto().getCrossSigningStatus();
                has = { ...keys, backup: (await crypto().getSessionBackupPrivateKey()) !== null, active: (await crypto().getActiveSessionBackupVersion()) !== null };
                return Object.values(has).every(Boolean);
            }, timeout, () => `secrets, there are ${JSON.stringify(has)}`);
        },
        // newRoomKey makes the next message have a key of its own, as after somebody left.
        async newRoomKey({ room }) { await crypto().forceDiscardSession(room); },
        // waitUnreadable shows the room, which is when a client decrypts, and waits for messages whose keys it lacks.
        async waitUnreadable({ room, count, timeout = 30000 }) {
            let got = 0;
            await until(async () => {
                await client().getRoom(room)?.decryptAllEvents();
                got = client().getRoom(room)?.getLiveTimeline().getEvents().filter((e) => e.isDecryptionFailure()).length ?? 0;
                return got >= count;
            }, timeout, () => `${count} messages that cannot be decrypted, ${got} came`);
        },
        // dehydrate takes over the device that waited for messages, if there is one, and leaves another in its place.
        async dehydrate() {
            if (!(await crypto().isDehydrationSupported())) throw new Error("the node does not support dehydrated devices");
            rehydrated = { roomKeys: 0, messages: 0, completed: false };
            await crypto().startDehydration();
            if (rehydrated.error) throw new Error(rehydrated.error);
            return rehydrated;
        },
        async removeDevice({ device, password }) {
            const prompts = [];
            await prove(password, prompts)((auth) => client().deleteDevice(device, auth ?? undefined));
            return { prompts };
        },
    };
    return {
        ops,
        callbacks,
        attach(c) {
            c.on(CryptoEvent.VerificationRequestReceived, (r) => { requests.push(r); wake(); });
            c.on(CryptoEvent.RehydrationProgress, (roomKeys, messages) => Object.assign(rehydrated, { roomKeys, messages }));
            c.on(CryptoEvent.RehydrationCompleted, () => { rehydrated.completed = true; });
            c.on(CryptoEvent.RehydrationError, (error) => { rehydrated.error = error; });
            for (const e of ["UserTrustStatusChanged", "KeyBackupStatus", "KeyBackupSessionsRemaining", "KeyBackupDecryptionKeyCached", "DevicesUpdated", "KeysChanged"]) {
                c.on(CryptoEvent[e], wake);
            }
        },
    };
}
