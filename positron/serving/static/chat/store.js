// The conversations of this browser, in IndexedDB. Without it (private windows) they last until the page is closed.

const DATABASE = "positron";
const NAME = "conversations";

// Return a random id. crypto.randomUUID does not exist where the page comes from another machine by http.
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function promised(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// Wait until a transaction is complete: a browser may report only then, and not at the request, that its storage is full.
function completed(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}

export async function openStore() {
  try {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(NAME, { keyPath: "id" });
    return new Store(await promised(request));
  } catch {
    return new Store(null);
  }
}

class Store {
  constructor(database) {
    [this.database, this.memory] = [database, new Map()];
  }

  get lasts() {
    return this.database !== null;
  }

  // All conversations, the newest first.
  async all() {
    const list = this.database ? await promised(this.objects("readonly").getAll()) : [...this.memory.values()];
    return list.sort((a, b) => b.updated - a.updated);
  }

  // The conversation with this id, or undefined if it was deleted.
  async get(id) {
    return this.database ? promised(this.objects("readonly").get(id)) : structuredClone(this.memory.get(id));
  }

  // Save a conversation, and return whether it was saved as a copy because another page has saved it since this page read it.
  async put(conversation) {
    if (!this.database) {
      conversation.updated = Date.now();
      this.memory.set(conversation.id, structuredClone(conversation));
      return false;
    }
    const objects = this.objects("readwrite"); // one transaction: no other page saves between its two requests
    const stored = await promised(objects.get(conversation.id));
    const isCopy = stored?.updated > conversation.updated; // only now, because this page may have saved it meanwhile
    if (isCopy) Object.assign(conversation, { id: newId(), title: `${conversation.title} (copy)` });
    conversation.updated = Date.now();
    objects.put(conversation);
    await completed(objects.transaction);
    return isCopy;
  }

  async delete(id) {
    if (!this.database) {
      this.memory.delete(id);
      return;
    }
    const objects = this.objects("readwrite");
    objects.delete(id);
    await completed(objects.transaction);
  }

  objects(mode) {
    return this.database.transaction(NAME, mode).objectStore(NAME);
  }
}
