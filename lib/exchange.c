/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * exchange: one packet to the agent, one packet back, and what that one says
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "exchange.h"

#define NO_SENSE "the agent's reply makes no sense"

int exchange_connect(const struct sockaddr_un *address)
{
	int fd, r;

	/* It would be a name that anybody may take. */
	if (!address->sun_path[0])
		return -ENOENT;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 && fcntl(fd, F_SETFL, O_RDWR) == 0)
		return fd;
	r = -errno;
	close(fd);
	return r;
}

int exchange_send(int connection, const struct pmem_agent_request *request, int fd)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)request, .iov_len = sizeof(*request) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
	};

	if (request->kept == 0) {
		struct cmsghdr *header = &control.align;

		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(fd));
		memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	}
	return sendmsg(connection, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

bool exchange_is_undelivered(int r)
{
	return r == -EPIPE || r == -ECONNRESET || r == -ENOTCONN || r == -ECONNREFUSED;
}

ssize_t exchange_receive(int connection, struct pmem_agent_reply *ret, bool wait)
{
	ssize_t n;

	memset(ret, 0, sizeof(*ret));
	do
		n = recv(connection, ret, sizeof(*ret), MSG_TRUNC | (wait ? 0 : MSG_DONTWAIT));
	/* That the agent has not read everything is told once, before what it has answered. */
	while (n < 0 && errno == ECONNRESET);
	return n < 0 ? -errno : n;
}

static bool is_confirmation(const struct pmem_agent_reply *reply)
{
	return reply->type == PMEM_AGENT_PACKET_FLUSH && reply->answer == PMEM_AGENT_DURABLE && reply->error == 0 &&
	       reply->scope != PMEM_AGENT_SCOPE_AUTO && reply->scope < PMEM_AGENT_N_SCOPES &&
	       reply->basis != PMEM_AGENT_BASIS_NONE && reply->basis < PMEM_AGENT_N_BASES && reply->n_regions > 0 &&
	       reply->n_regions <= PMEM_AGENT_MAX_REGIONS;
}

static bool is_description(const struct pmem_agent_reply *reply)
{
	return reply->type == PMEM_AGENT_PACKET_QUERY && reply->scope < PMEM_AGENT_N_SCOPES &&
	       reply->method < PMEM_AGENT_N_METHODS && reply->n_regions <= PMEM_AGENT_MAX_REGIONS;
}

static struct exchange_verdict nonsense(enum exchange_concern concern)
{
	return (struct exchange_verdict){ concern, PMEM_AGENT_UNKNOWN, -EIO, NO_SENSE };
}

void exchange_judge(struct pmem_agent_reply *reply, size_t size, struct exchange_verdict *ret)
{
	if (size >= offsetof(struct pmem_agent_reply, answer) && reply->version != PMEM_AGENT_WIRE_VERSION)
		*ret = (struct exchange_verdict){ EXCHANGE_REFUSAL, PMEM_AGENT_REFUSED, -EPROTONOSUPPORT,
						  "the agent speaks another version of the protocol" };
	else if (size != sizeof(*reply))
		*ret = nonsense(EXCHANGE_ALL);
	else if (reply->id != 0)
		*ret = nonsense(EXCHANGE_ONE);
	else if (reply->type == PMEM_AGENT_PACKET_ERROR && reply->answer == PMEM_AGENT_BUSY)
		*ret = (struct exchange_verdict){ EXCHANGE_REFUSAL, PMEM_AGENT_BUSY, -EBUSY, reply->detail };
	else
		*ret = nonsense(EXCHANGE_REFUSAL);
	reply->detail[sizeof(reply->detail) - 1] = '\0';
}

void exchange_expect(uint32_t type, const struct pmem_agent_reply *reply, struct exchange_verdict *verdict)
{
	bool good = type == PMEM_AGENT_PACKET_QUERY ? is_description(reply) : is_confirmation(reply);
	int error = reply->error;

	if (reply->answer == PMEM_AGENT_DURABLE && reply->error == 0 && good)
		*verdict = (struct exchange_verdict){ EXCHANGE_ONE, PMEM_AGENT_DURABLE, 0, "" };
	else if (reply->answer == PMEM_AGENT_DURABLE || reply->answer >= PMEM_AGENT_N_ANSWERS)
		*verdict = nonsense(EXCHANGE_ONE);
	else
		*verdict = (struct exchange_verdict){
			.answer = (enum pmem_agent_answer)reply->answer,
			.error = error > 0 && error < 4096 && error != EAGAIN && error != ESRCH ? -error : -EIO,
			.detail = reply->detail,
		};
}
