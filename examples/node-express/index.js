// `npm install`, then `rip-server examples/node-express`: an Express app that is exported, not listening.
import express from 'express'

const app = express()
app.get('/', (request, response) => {
  response.json({ hello: 'express', pid: process.pid })
})
app.post('/echo', express.json(), (request, response) => {
  response.json(request.body)
})
export default app
