"""A python3-matrix-nio client that a test drives by the same lines of JSON as sdk.mjs."""
import asyncio
import json
import sys
import time
import urllib.request

import nio


class Driver:
    def __init__(self):
        self.client = None
        self.rooms = {}
        self.changed = asyncio.Condition()
        self.syncing = None

    async def op_register(self, url, user, password, token):
        def post(body):
            req = urllib.request.Request(url + "/_matrix/client/r0/register", json.dumps(body).encode(), {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(req) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as e:
                return e.code, json.load(e)

        status, first = await asyncio.to_thread(post, {"username": user, "password": password})
        if status != 401:
            raise RuntimeError(f"register: {status} {first}")
        auth = {"type": "m.login.registration_token", "token": token, "session": first["session"]}
        status, done = await asyncio.to_thread(post, {"username": user, "password": password, "auth": auth})
        if status != 200:
            raise RuntimeError(f"register: {status} {done}")
        return done

    async def op_login(self, url, user, password, store):
        config = nio.AsyncClientConfig(store_sync_tokens=False, encryption_enabled=True)
        self.client = nio.AsyncClient(url, user, store_path=store, config=config)
        answer = await self.client.login(password)
        if not isinstance(answer, nio.LoginResponse):
            raise RuntimeError(f"login: {answer}")
        return {"user_id": answer.user_id, "device_id": answer.device_id, "access_token": answer.access_token}

    # limit is of the timelines in /sync: what is beyond it nio does not show.
    async def op_start(self, limit=20, **_):
        self.filter = {"room": {"timeline": {"limit": limit}}}
        self.client.add_event_callback(self.received, nio.RoomMessageText)
        self.client.add_event_callback(self.received, nio.MegolmEvent)
        answer = await self.client.sync(timeout=0, full_state=True, sync_filter=self.filter)
        if not isinstance(answer, nio.SyncResponse):
            raise RuntimeError(f"sync: {answer}")
        if self.client.should_upload_keys:
            await self.client.keys_upload()
        self.syncing = asyncio.create_task(self.sync_on())
        return {}

    async def sync_on(self):
        while True:
            answer = await self.client.sync(timeout=5000, sync_filter=self.filter)
            if not isinstance(answer, nio.SyncResponse):
                await asyncio.sleep(0.2)
                continue
            if self.client.should_upload_keys:
                await self.client.keys_upload()
            if self.client.should_query_keys:
                await self.client.keys_query()
            async with self.changed:
                self.changed.notify_all()

    async def received(self, room, event):
        if isinstance(event, nio.MegolmEvent):
            return  # not decrypted (yet)
        known = self.rooms.setdefault(room.room_id, [])
        if all(m["event_id"] != event.event_id for m in known):
            known.append({"sender": event.sender, "body": event.body, "type": "m.room.message", "at": time.time() * 1000,
                          "event_id": event.event_id, "encrypted": event.decrypted})

    async def until(self, check, timeout, what):
        async def wait():
            async with self.changed:
                while not check():
                    await self.changed.wait()
        try:
            await asyncio.wait_for(wait(), timeout / 1000)
        except asyncio.TimeoutError:
            raise RuntimeError(f"timed out waiting for {what()}")

    async def op_createRoom(self, name=None, invite=(), encrypted=False, power=None):
        initial = [nio.EnableEncryptionBuilder().as_dict()] if encrypted else []
        answer = await self.client.room_create(name=name, invite=invite, initial_state=initial, power_level_override=power)
        if not isinstance(answer, nio.RoomCreateResponse):
            raise RuntimeError(f"createRoom: {answer}")
        return {"room": answer.room_id}

    async def op_invite(self, room, user):
        answer = await self.client.room_invite(room, user)
        if not isinstance(answer, nio.RoomInviteResponse):
            raise RuntimeError(f"invite: {answer}")

    async def op_waitInvite(self, room, timeout=20000):
        await self.until(lambda: room in self.client.invited_rooms, timeout, lambda: f"an invite to {room}")

    async def op_join(self, room, via=None):
        answer = await self.client.join(room)
        if not isinstance(answer, nio.JoinResponse):
            raise RuntimeError(f"join: {answer}")

    async def op_waitMember(self, room, user, membership="join", timeout=20000):
        await self.until(lambda: room in self.client.rooms and user in self.client.rooms[room].users, timeout, lambda: f"{user} in {room}")

    async def op_waitEncrypted(self, room, timeout=20000):
        await self.until(lambda: room in self.client.rooms and self.client.rooms[room].encrypted, timeout, lambda: f"encryption in {room}")

    async def op_send(self, room, body):
        at = time.time() * 1000
        answer = await self.client.room_send(room, "m.room.message", {"msgtype": "m.text", "body": body}, ignore_unverified_devices=True)
        if not isinstance(answer, nio.RoomSendResponse):
            raise RuntimeError(f"send: {answer}")
        return {"event_id": answer.event_id, "at": at, "acked": time.time() * 1000}

    async def op_sendMany(self, room, prefix, count):
        return {"sent": [await self.op_send(room, f"{prefix} {i}") for i in range(count)]}

    async def op_waitMessages(self, room, prefix, count, timeout=30000):
        def mine():
            return [m for m in self.rooms.get(room, []) if m["body"].startswith(prefix)]
        await self.until(lambda: len(mine()) >= count, timeout, lambda: f"{count} messages {prefix} ({len(mine())} came)")
        return {"messages": mine()}

    async def op_stop(self):
        if self.syncing:
            self.syncing.cancel()
        if self.client:
            await self.client.close()
        asyncio.get_running_loop().call_later(0.05, sys.exit, 0)


async def main():
    driver = Driver()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running = set()

    async def answer(request):
        number, op = request.pop("id"), request.pop("op")
        try:
            result = {"id": number, "ok": await getattr(driver, "op_" + op)(**request) or {}}
        except Exception as e:  # the test gets it
            result = {"id": number, "error": repr(e)}
        print(json.dumps(result), flush=True)

    while line := await reader.readline():
        task = asyncio.create_task(answer(json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)


asyncio.run(main())
