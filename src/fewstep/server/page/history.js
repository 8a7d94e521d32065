// The pictures that were kept, in this browser.

const NAME = 'fewstep';
const STORE = 'pictures';
const MOST = 200;

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: 'id', autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function run(mode, work) {
  const database = await opened();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

// Newest first.
export async function all() {
  return (await run('readonly', (store) => store.getAll())).reverse();
}

export async function keep(picture) {
  const id = await run('readwrite', (store) => store.add(picture));
  const kept = await all();
  for (const old of kept.slice(MOST)) await remove(old.id);
  return { ...picture, id };
}

export function remove(id) {
  return run('readwrite', (store) => store.delete(id));
}
