# The harness's second role: a process that has loaded the app, listens nowhere, and forks a worker on the server's word.
#
# The server's line is the standard input. On it the server asks for a worker with its number, variables and two pipes;
# the template makes an intermediate process, that one makes the worker, names it to the server and ends. So the worker
# becomes the server's own child (which adopts orphans), and the app's fork hooks run in the worker's branch alone.

require "socket"
require "rbconfig"

module Rip
  class Template
    # As the runtime has it: the hooks that the app puts before it are for the worker alone.
    PLAIN_FORK = Process.respond_to?(:_fork) ? Process.method(:_fork) : Process.method(:fork)

    MAX_MESSAGE_BYTES = 64 * 1024
    PR_SET_PDEATHSIG = 1
    WAIT_S = 0.0002 # between two looks whether the process between has ended
    WARM_REQUESTS = 3 # the first loads what is lazy, the others what the first has put into caches

    # `mode`: auto, or always. `warm`: a path of the app's, or nil.
    def initialize(mode, warm)
      @mode, @warm = mode, warm
      @server = Process.ppid
      inherited = $stdin.dup
      inherited.autoclose = false
      @line = Socket.for_fd(inherited.fileno)
      # The app's standard input is a pipe that nobody writes to, as that of every worker.
      reader, writer = IO.pipe
      $stdin.reopen(reader)
      [reader, writer].each(&:close)
    end

    # Before the app is loaded, and after Bundler has chosen the gems.
    def begin
      begin
        require "fiddle"
        int, long = Fiddle::TYPE_INT, Fiddle::TYPE_LONG
        @prctl = Fiddle::Function.new(Fiddle.dlopen(nil)["prctl"], [int, long, long, long, long], int)
      rescue LoadError, Fiddle::DLError => error
        refuse("#{RbConfig.ruby} cannot call libc's prctl (Fiddle: #{error.message})")
      end
      # What the runtime makes for itself at the first thread is not the app's.
      Thread.new { sleep WAIT_S }.join
      @descriptors, @tasks = descriptors, tasks
      refuse("/proc, which tells what a fork would share, is not there") if @descriptors.empty? && @mode != "always"
    end

    def say(*words)
      @line.send(words.join(" ").scrub[0, 500], 0)
    end

    def refuse(why)
      say("refused", why)
      exit!(0)
    end

    # Forks until the server closes the line. Comes back in the worker: its variables.
    def run(worker)
      close_databases
      found = obstacle
      if @warm && !found
        warm(worker)
        close_databases
        found = obstacle
      end
      refuse("#{found}; --fork=always would fork nevertheless") if found && @mode != "always"
      tidy
      say("ready")
      loop do
        number, variables, pipes = next_order
        return variables if fork(number, pipes)
        pipes.each(&:close)
      end
    end

    private

    def tidy
      return Process.warmup if Process.respond_to?(:warmup)
      GC.start
      GC.compact if GC.respond_to?(:compact)
    rescue NotImplementedError
      nil # not on this machine
    end

    def next_order
      message, _, _, *controls = @line.recvmsg(MAX_MESSAGE_BYTES, 0, 4096, scm_rights: true)
      exit!(0) if message.nil? || message.empty?
      number, *variables = message.split("\0")
      pipes = controls.flat_map { |control| control.cmsg_is?(:SOCKET, :RIGHTS) ? control.unix_rights : [] }
      [number, variables.to_h { |variable| variable.split("=", 2) }, pipes]
    rescue SystemCallError
      exit!(0)
    end

    # True in the worker.
    def fork(number, pipes)
      [$stdout, $stderr].each(&:flush)
      between = PLAIN_FORK.call
      if between.nil? || between.zero?
        be_between(number, pipes)
        return true
      end
      _, status = Process.wait2(between)
      say("failed", number, "the process between has ended: #{status}") unless status.success?
      false
    rescue SystemCallError => error
      say("failed", number, error.message)
      false
    end

    # The process between template and worker; comes back in the worker.
    def be_between(number, pipes)
      between = Process.pid
      begin
        worker = Process.fork
      rescue SystemCallError => error
        say("failed", number, error.message)
        exit!(0)
      end
      return be_worker(between, pipes) if worker.nil?
      # Before this process ends, so that the worker is known before it can join.
      say("forked", number, worker)
      exit!(0)
    rescue Exception
      exit!(1) if Process.pid == between
      raise
    end

    def be_worker(between, pipes)
      @line.close
      Process.setpgid(0, 0)
      sleep WAIT_S while Process.ppid == between
      # Every fork loses it, and set earlier it would fire at the end of the process between.
      @prctl.call(PR_SET_PDEATHSIG, Signal.list["KILL"], 0, 0, 0)
      exit!(1) if Process.ppid != @server
      pipes.zip([$stdout, $stderr]) do |pipe, standard|
        standard.reopen(pipe)
        standard.sync = true
        pipe.close
      end
    end

    # What a fork would share, or leave behind

    # Why the app is not to be forked, or nil.
    def obstacle
      threads || processes || (descriptors - @descriptors).lazy.filter_map { |fd| shared(fd) }.first
    end

    def threads
      thread = Thread.list.find { |other| other != Thread.main }
      if thread
        name = thread.name || thread.inspect[/[^ ]+:\d+/] || thread.inspect
        return "the thread '#{name}' runs, started while the app was loaded"
      end
      task = (tasks - @tasks).first
      "a thread runs that a library has started while the app was loaded (#{task} of #{Process.pid})" if task
    end

    def processes
      "a process runs that the app has started while it was loaded" if Process.wait(-1, Process::WNOHANG).nil?
    rescue Errno::ECHILD
      nil
    end

    def tasks
      Dir.children("/proc/self/task")
    rescue SystemCallError
      []
    end

    # This process's, or nothing where /proc does not tell.
    def descriptors
      Dir.children("/proc/self/fd").map(&:to_i).select { |fd| File.exist?("/proc/self/fdinfo/#{fd}") }
    rescue SystemCallError
      []
    end

    # What two processes must not both use, or nil.
    def shared(fd)
      target = File.readlink("/proc/self/fd/#{fd}")
      info = File.read("/proc/self/fdinfo/#{fd}")
      case target
      when /\Asocket:/ then connected(fd)
      when /\Apipe:/ then "descriptor #{fd} is a pipe"
      when /\Aanon_inode:\[?(\w+)/ then "descriptor #{fd} is of the kind #{$1}"
      else
        return "descriptor #{fd}, '#{target}', is locked" if info.match?(/^lock:/)
        is_written = info[/^flags:\s*(\d+)/, 1].to_i(8) & File::ACCMODE != 0 && !target.start_with?("/dev/")
        "descriptor #{fd}, '#{target}', is open for writing" if is_written
      end
    rescue Errno::ENOENT
      nil
    end

    def connected(fd)
      socket = Socket.for_fd(fd)
      socket.autoclose = false
      return if socket.getsockopt(:SOCKET, :TYPE).int == Socket::SOCK_DGRAM
      peer = socket.remote_address
      name = peer.ip? ? "#{peer.ip_address} port #{peer.ip_port}" : peer.inspect_sockaddr
      "descriptor #{fd} is a connection to #{name}"
    rescue Errno::ENOTCONN
      nil # it listens, or is not connected yet
    end

    # Connections are opened when they are needed, and never shared.
    def close_databases
      return unless defined?(ActiveRecord::Base)
      handler = ActiveRecord::Base.connection_handler
      (handler.respond_to?(:clear_all_connections!) ? handler : ActiveRecord::Base).clear_all_connections!
    rescue StandardError
      nil
    end

    # Lets the app answer a GET a few times: what it loads then is shared.
    def warm(worker)
      WARM_REQUESTS.times do
        status, _, body = worker.app.call(Rack::MockRequest.env_for(@warm))
        body.each {} if body.respond_to?(:each)
        body.close if body.respond_to?(:close)
        next if status.to_i < 400
        return worker.say("--warm=#{@warm} was answered #{status}")
      end
    rescue Exception => error
      worker.say("--warm=#{@warm} failed", error)
    end
  end
end
