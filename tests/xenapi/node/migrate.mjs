// Two connections of the npm package xen-api, and one migration as Xen Orchestra makes it. What is to be done comes as
// JSON on standard input; what was seen goes out as JSON.
import { readFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const wish = JSON.parse(readFileSync(0, 'utf8'))
const { createClient } = await import(pathToFileURL(`${wish.packages}/xen-api/index.mjs`).href)
const seen = { types: [], progress: [], statuses: [], barrier: false }

const connect = async url => {
  const xapi = createClient({
    url, auth: { user: wish.user, password: wish.password }, transport: wish.transport, debounce: 10,
  })
  await xapi.connect()
  await xapi.objectsFetched
  return xapi
}
const until = async (condition, what) => {
  const end = Date.now() + 20e3
  let found
  while (!(found = condition())) {
    if (Date.now() > end) throw new Error(`it never came true: ${what}`)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  return found
}
const all = (xapi, type) => Object.values(xapi.objects.all).filter(object => object.$type === type)

const source = await connect(wish.source)
const destination = await connect(wish.destination)
try {
  seen.types = [...new Set(Object.values(source.objects.all).map(object => object.$type))].sort()
  await source.barrier()
  seen.barrier = true

  const vm = source.getObjectByUuid(wish.vm)
  const host = all(destination, 'host')[0]
  const network = all(destination, 'PIF').find(pif => pif.management && pif.host === host.$ref).$network
  const sr = all(destination, 'SR')[0]
  const vdis = Object.fromEntries(vm.$VBDs.filter(vbd => vbd.type === 'Disk').map(vbd => [vbd.VDI, sr.$ref]))
  const vifs = Object.fromEntries(vm.VIFs.map(vif => [vif, network.$ref]))

  const dest = await destination.call('host.migrate_receive', host.$ref, network.$ref, {})
  const six = [vm.$ref, dest, true, vdis, vifs, { force: 'false' }]
  await source.callAsync('VM.assert_can_migrate', ...six)

  source.objects.on('update', changed => {
    for (const object of Object.values(changed)) {
      if (object?.$type === 'task' && object.name_label === 'Async.VM.migrate_send') {
        seen.progress.push(object.progress)
        seen.statuses.push(object.status)
      }
    }
  })
  const moving = source.callAsync('VM.migrate_send', ...six)
  if (wish.cancel) {
    await until(() => seen.progress.some(progress => progress > 0.05), 'it gets on')
    moving.cancel()
  }
  try {
    seen.result = await moving
  } catch (error) {
    seen.error = { code: error.code, message: String(error.message) }
  }
  if (wish.cancel) {
    seen.state = await source.call('VM.get_power_state', vm.$ref)
  } else {
    await until(() => source.getObjectByUuid(wish.vm, undefined) === undefined, 'it is gone at the source')
    const arrived = await until(() => destination.getObjectByUuid(wish.vm, undefined), 'it is at the destination')
    await until(() => arrived.$ref === seen.result, 'the result is its reference')
    seen.state = await destination.call('VM.get_power_state', arrived.$ref)
  }
  await until(() => all(source, 'task').every(task => task.name_label !== 'Async.VM.migrate_send'), 'its task is destroyed')
} finally {
  await source.disconnect()
  await destination.disconnect()
}
console.log(JSON.stringify(seen))
process.exit(0)
