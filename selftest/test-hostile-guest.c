/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-hostile-guest: whatever a guest sends, pmemctl serve answers its other clients, and stays small
 *
 * HOSTILE_SEC in the environment is for how long, 3 without it; `make hostile` has a minute.
 */
#include "selftest/guestend.h"

static char directory[] = "/var/tmp/test-hostile-XXXXXX", socket_path[64], listen_path[64], file[64];
static int listener;
static pid_t serve;
static struct end guest, client, sleeper;
static uint64_t asked_usec; /* 0: the client waits for nothing */
static unsigned int n_asked, n_answered, n_closed, n_kinds[16];

/* What is freed would be kept for long. */
__attribute__((visibility("default"), used)) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "quarantine_size_mb=1";
}

static int set_up(void **state)
{
	char backing[128];
	int fd;

	alarm(300);
	if (!mkdtemp(directory))
		return -1;
	snprintf(socket_path, sizeof(socket_path), "%s/guest", directory);
	snprintf(listen_path, sizeof(listen_path), "%s/serve", directory);
	snprintf(file, sizeof(file), "%s/file", directory);
	fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0 && ftruncate(fd, 4096) == 0);
	close(fd);
	snprintf(backing, sizeof(backing), "0x1000=%s,share=on", file);
	listener = end_listen(socket_path);
	serve = end_pmemctl((const char *const[]){ "--host", socket_path, "serve", "--listen", listen_path, "--backing",
						   backing, NULL },
			    NULL, tmpfile());
	return 0;
}

static int tear_down(void **state)
{
	unlink(file);
	unlink(socket_path);
	unlink(listen_path);
	return rmdir(directory);
}

static unsigned long resident_kib(void)
{
	char path[64], line[128];
	unsigned long kib = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", serve);
	f = fopen(path, "re");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "VmRSS: %lu", &kib) == 1)
			break;
	fclose(f);
	return kib;
}

/* ---- the guest ---- */

static void reconnect(void)
{
	struct timeval limit = { .tv_sec = ANSWER_MSEC / 1000 };

	if (guest.fd >= 0)
		end_close(&guest);
	end_accept(&guest, listener);
	setsockopt(guest.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	end_send(&guest, "{'pmem-agent':%s}", AGENT("i1", "0"));
}

/* It takes all that we send, whatever it thinks of it. */
static void pour(const void *bytes, size_t size)
{
	for (const char *p = bytes; size > 0;) {
		ssize_t n = send(guest.fd, p, size, MSG_NOSIGNAL);

		if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) {
			reconnect();
			return;
		}
		assert_true(n > 0);
		p += n;
		size -= (size_t)n;
	}
}

static void pour_text(const char *text)
{
	char copy[1024];
	size_t n = strlen(text);

	for (size_t i = 0; i <= n; i++)
		copy[i] = text[i] == '\'' ? '"' : text[i];
	pour(copy, n);
}

static void random_bytes(void)
{
	char bytes[4096];

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (char)random();
	pour(bytes, sizeof(bytes));
}

static void deep(void)
{
	static char text[65536];
	const char *unit = random() % 2 ? "[" : "{\"a\":";

	for (size_t i = 0; i + 8 < sizeof(text); i += strlen(unit))
		memcpy(text + i, unit, strlen(unit) + 1);
	pour(text, strlen(text));
	pour("\n", 1);
}

/* Small on the line, large in memory. */
static void wide(void)
{
	static char text[200000];
	const char *unit = random() % 2 ? "[]," : "{},";
	size_t at = (size_t)snprintf(text, sizeof(text), "{\"event\":\"DURABLE\",\"data\":{\"x\":[");

	while (at + 16 < sizeof(text)) {
		memcpy(text + at, unit, 3);
		at += 3;
	}
	pour(text, at);
	pour_text("0]}}\n");
}

static void huge_numbers(void)
{
	pour_text("{'event':'FLUSH_WANTED','data':{'address':1e999,'number':99999999999999999999999999999999}}\n"
		  "{'event':'FLUSH_WANTED','data':{'address':-1,'number':-1}}\n"
		  "{'event':'REGION_ADDED','data':{'address':18446744073709551616}}\n"
		  "{'return':{},'id':18446744073709551615}\n{'return':{'protocol':-1},'id':1}\n"
		  "{'error':[],'id':{}}\n{'return':7,'id':2}\n{'event':7}\n{'pmem-agent':[]}\n");
}

static void flood_of_events(void)
{
	for (unsigned int i = 0; i < 200; i++)
		pour_text("{'event':'LOST','data':{'region':'region0','address':4096,'loss':1}}\n");
}

static void flood_of_wishes(void)
{
	for (unsigned int i = 0; i < 50; i++) {
		char text[160];

		snprintf(text, sizeof(text), "{'event':'FLUSH_WANTED','data':{'address':%d,'number':%u}}\n",
			 i % 2 ? 4096 : 12345, i);
		pour_text(text);
	}
}

static void flood_of_regions(void)
{
	for (unsigned int i = 0; i < 50; i++)
		pour_text("{'event':'REGION_ADDED','data':{'address':4096}}\n{'event':'NEW_INSTANCE','data':{}}\n"
			  "{'event':'MISSED','data':{}}\n");
}

static void flood_of_greetings(void)
{
	for (unsigned int i = 0; i < 20; i++) {
		char text[160];

		snprintf(text, sizeof(text), "{'pmem-agent':{'instance':'%ld','protocol':2,'features':[[],{}]}}\n",
			 random());
		pour_text(text);
	}
}

static void endless_line(void)
{
	static char text[400000];

	memset(text, 'x', sizeof(text));
	pour(text, sizeof(text));
}

static void resyncs(void)
{
	char bytes[1000];

	memset(bytes, 0xFF, sizeof(bytes));
	pour(bytes, sizeof(bytes));
}

/* It takes the other side a while to come back, so this is rare. */
static void half_closed(void)
{
	if (random() % 8 != 0)
		return;
	shutdown(guest.fd, random() % 2 ? SHUT_WR : SHUT_RD);
	reconnect();
}

static void (*const kinds[])(void) = {
	random_bytes,       deep,         wide,    huge_numbers, flood_of_events, flood_of_wishes, flood_of_regions,
	flood_of_greetings, endless_line, resyncs, half_closed
};

/* What the client asked is answered; what serve says of itself only sometimes. */
static void answer_commands(void)
{
	struct json_object *o;

	while ((o = end_read_for(&guest, 0))) {
		const char *name = json_get_string(o, "execute", "");

		if (strcmp(name, "flush") == 0 || strcmp(name, "query") == 0 || random() % 2) {
			char text[1024];

			snprintf(text, sizeof(text), "\n{\"return\":%s,\"id\":%s}\n",
				 strcmp(name, "query") == 0 ? "{\"instance\":\"i1\",\"protocol\":2}" : "{}", end_id(o));
			pour(text, strlen(text));
		}
		json_object_put(o);
	}
}

/* ---- the clients ---- */

static void ask(void)
{
	static const char *const commands[] = { "flush", "negotiate", "set-backing" };

	if (asked_usec > 0)
		return;
	end_send(&client, "{'execute':'%s','id':'%u'}", commands[n_asked % 3], n_asked);
	n_asked++;
	asked_usec = now_usec(CLOCK_MONOTONIC);
}

static void take_answers(void)
{
	struct json_object *o;
	char id[32];

	snprintf(id, sizeof(id), "%u", n_asked - 1);
	while ((o = end_read_for(&client, 0))) {
		if (asked_usec > 0 && strcmp(json_get_string(o, "id", ""), id) == 0) {
			asked_usec = 0;
			n_answered++;
		}
		json_object_put(o);
	}
	assert_true(asked_usec == 0 || now_usec(CLOCK_MONOTONIC) - asked_usec < ANSWER_MSEC * USEC_PER_MSEC);
}

/* One that comes, asks for everything, and goes in the middle of a line. */
static void come_and_go(void)
{
	struct end other;

	end_connect(&other, listen_path);
	if (send(other.fd, "{\"execute\":\"query\"}\n{\"execute\":\"fl", 33, MSG_NOSIGNAL) < 0)
		n_closed++;
	end_close(&other);
}

static void test_hostile(void **state)
{
	const char *seconds = getenv("HOSTILE_SEC");
	unsigned long before, after;
	uint64_t until;
	int status;

	guest.fd = -1;
	srandom(1);
	reconnect();
	end_connect(&client, listen_path);
	end_connect(&sleeper, listen_path);
	for (unsigned int i = 0; i < 200; i++) {
		kinds[i % ARRAY_SIZE(kinds)]();
		answer_commands();
		take_answers();
	}
	before = resident_kib();
	until = now_usec(CLOCK_MONOTONIC) + (uint64_t)(seconds ? atoi(seconds) : 3) * USEC_PER_SEC;
	for (unsigned int i = 0; now_usec(CLOCK_MONOTONIC) < until || asked_usec > 0; i++) {
		unsigned int kind = (unsigned int)random() % ARRAY_SIZE(kinds);

		kinds[kind]();
		n_kinds[kind]++;
		answer_commands();
		if (now_usec(CLOCK_MONOTONIC) < until)
			ask();
		take_answers();
		if (i % 16 == 0)
			come_and_go();
	}
	after = resident_kib();
	print_message("# %u commands of a client were answered; %lu KiB resident before, %lu after\n", n_answered,
		      before, after);
	assert_true(n_answered > 10);
	assert_int_equal(n_answered, n_asked);
	assert_true(after < before + 16384);
	for (unsigned int i = 0; i < ARRAY_SIZE(kinds); i++)
		assert_true(n_kinds[i] > 0);

	kill(serve, SIGTERM);
	assert_int_equal(waitpid(serve, &status, 0), serve);
	assert_int_equal(status, 0);
	end_close(&client);
	end_close(&sleeper);
	end_close(&guest);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_hostile) };

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
