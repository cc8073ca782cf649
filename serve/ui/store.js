// Conversations, kept in this browser (IndexedDB). Where it has none, such as in some private
// windows, they live as long as the page.

const memory = new Map();
let opening;

function open() {
  opening ??= new Promise((resolve) => {
    const request = indexedDB.open("thinkgate", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);
  });
  return opening;
}

async function run(mode, work) {
  const database = await open();
  if (!database) return undefined;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("conversations", mode);
    const request = work(transaction.objectStore("conversations"));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/** All conversations, the one used last first. */
export async function conversations() {
  for (const one of (await run("readonly", (kept) => kept.getAll())) ?? []) {
    memory.set(one.id, settled(one));
  }
  return [...memory.values()].sort((a, b) => b.updated - a.updated);
}

export async function save(conversation) {
  conversation.updated = Date.now();
  memory.set(conversation.id, conversation);
  await run("readwrite", (kept) => kept.put(conversation));
}

export async function remove(id) {
  memory.delete(id);
  await run("readwrite", (kept) => kept.delete(id));
}

export async function clear() {
  memory.clear();
  await run("readwrite", (kept) => kept.clear());
}

/** What was being generated when the page closed is not any more. */
function settled(conversation) {
  for (const turn of conversation.turns) {
    if (turn.state && turn.state !== "done" && turn.state !== "failed") turn.state = "stopped";
  }
  return conversation;
}
