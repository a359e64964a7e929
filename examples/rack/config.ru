# Run it with `rip-server examples/rack w:4`.
run lambda { |_env|
  [200, { "content-type" => "text/plain" }, ["Hello from worker #{ENV["WORKER_ID"]}\n"]]
}
