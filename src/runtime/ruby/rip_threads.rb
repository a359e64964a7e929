# Several requests at once (`c:` above 1), each in a thread.
#
# One thread leads: it waits for all connections and serves what comes itself, one request after the other, which costs
# no more than one thread alone. Another one stands by. When the leader is still at work on a request a moment later, the
# one that stands by takes the lead; the last leader goes on with its request beside it. So threads are woken only where
# a handler waits for something.

module Rip
  class ThreadedServer < Server
    # A request that takes longer leaves the lead to another thread. Shorter, and requests that only compute would wake
    # threads; longer, and those that wait would start late.
    LEAD_S = 0.001
    WAITS_S = 0.005 # a handler that took so long beside the lead has waited for something

    def initialize(worker)
      super
      @places = worker.max_at_work
      @fixed = Environment::FIXED.merge("rack.multithread" => true)
      @connections = {} # by their sockets
      @sources = [@wake_main, @listener] # what the leader waits for
      @standing_by = Mutex.new
      @loading = Mutex.new
      @lock = Mutex.new # over the five below
      @leader = nil
      @serial = 0 # of the leader's latest request
      @in_lead = nil # the connection that the leader serves
      @beside = 0 # requests of threads that do not lead
      @handlers_wait = false # as far as the last request tells: then nobody needs to look for how long
      @watches = false # whether the one that stands by looks at the clock
      @watch = ConditionVariable.new
      @finished = Queue.new
    end

    # Serves until the server has finished with this worker; the SIGTERM handler that the app has set.
    def run
      of_the_app = on_term
      keep_from_children
      # One more than there are places: somebody has to say that all are taken.
      (@places + 1).times { |me| start_thread(me) }
      @worker.join(@places)
      @finished.pop # signals' handlers run in this thread
      of_the_app
    end

    def sockets
      [@listener, *@connections.keys]
    end

    # The lead

    def start_thread(me)
      Thread.new { run_thread(me) }.abort_on_exception = true
    end

    def run_thread(me)
      loop do
        @standing_by.synchronize { nil until takes_lead?(me) }
        nil while lead(me)
      end
    end

    # Waits until the leader is at work for too long.
    def takes_lead?(me)
      serial = @lock.synchronize do
        @watch.wait(@lock) while @leader && !@in_lead
        @watches = true
        @serial
      end
      sleep LEAD_S if @leader && !@handlers_wait
      took = take_lead(me, serial)
      @watches = false if took || !@in_lead
      took
    end

    # Takes it from a leader that is at work on that request.
    def take_lead(me, serial)
      @lock.synchronize do
        if @leader
          return false if serial != @serial || !@in_lead
          @sources.delete(@in_lead.io)
          @in_lead.left_at = now
          @in_lead = nil
          @beside += 1
        end
        @leader = me
      end
      true
    end

    # Serves what has come; false when another has taken the lead.
    def lead(me)
      ready, = IO.select(@sources)
      ready.each do |io|
        if io == @wake_main
          woken
        elsif io == @listener
          accept
        elsif @beside >= @places
          refuse(@connections[io])
        else
          connection = @connections[io]
          @serial += 1
          @in_lead = connection
          @lock.synchronize { @watch.signal } unless @watches
          keep = serve_or_be_replaced(me, connection)
          unless still_leads?(me, connection, keep)
            @handlers_wait = now - connection.left_at > WAITS_S
            return @handlers_wait && take_lead(me, @serial)
          end
          @handlers_wait = false
        end
      end
      true
    end

    # A handler may end its thread, in which nothing goes on then but this: another one takes its place.
    def serve_or_be_replaced(me, connection)
      is_over = false
      keep = serve_one(connection)
      is_over = true
      keep
    ensure
      unless is_over
        still_leads?(me, connection, false)
        give_up_lead(me)
        start_thread(me)
      end
    end

    def give_up_lead(me)
      @lock.synchronize do
        next unless @leader == me
        @leader = nil
        @watch.signal
      end
    end

    def still_leads?(me, connection, keep)
      leads = @lock.synchronize do
        if @leader == me
          @in_lead = nil
          next true
        end
        @beside -= 1
        # The new leader may be waiting for the others already.
        @sources << connection.io if keep
        false
      end
      end_connection(connection) unless keep
      wake(@waker_of_main) unless leads
      leads
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end

    # Connections

    def accept
      connection = Connection.new(@listener.accept)
      @connections[connection.io] = connection
      @lock.synchronize { @sources << connection.io }
    rescue SystemCallError
      sleep ACCEPT_PAUSE_S
    end

    def end_connection(connection)
      @lock.synchronize { @sources.delete(connection.io) }
      @connections.delete(connection.io)
      connection.close
      # With the server gone, nobody will ever end this process.
      @leaving = true if @connections.empty? && !@worker.server_lives?
      wake(@waker_of_main) if @leaving
    end

    # All places are taken.
    def refuse(connection)
      return unless (head = connection.read_head)
      length = Head.body_bytes(head)
      connection.write(probed(head) || BUSY)
      raise Gone unless connection.skip_body(length)
    rescue Gone, BadRequest => error
      connection.refuse if error.is_a?(BadRequest)
      end_connection(connection)
    end

    def woken
      @wake_main.read_nonblock(4096)
      @quit_accepted = @worker.quit if @leaving && @quit_accepted.nil?
      return if @quit_accepted.nil? || @beside > 0 || (@quit_accepted && !@connections.empty?)
      @finished << true
    end

    # Requests

    def probed(head)
      kind = probe(head)
      return kind && READY unless kind == "idle"
      wanted = head[/^x-request-id: *([^\r]*)/i, 1]
      ids = @connections.values.map(&:request_id).compact
      (wanted ? ids.include?(wanted) : ids.any?) ? BUSY : READY
    end

    def respond(connection, env)
      connection.request_id = env["HTTP_X_REQUEST_ID"] || ""
      super
    ensure
      connection.request_id = nil
    end

    def newest_app
      @loading.synchronize { super }
    end
  end
end
